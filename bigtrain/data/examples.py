"""Labelled examples of a task, out of files of every kind.

What a file does not say clearly is an error or, where it concerns one example alone, that example is left out and
told: :class:`Examples` counts and lists it. Nothing is guessed, for a guess would be a wrong score later.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bigtrain.config.tasks import ColumnsConfig, Task
from bigtrain.data.examples_conll import read_conll
from bigtrain.data.examples_squad import Answer, read_squad
from bigtrain.data.examples_table import Table, read_table
from bigtrain.data.tags import Scheme, problem, scheme_of
from bigtrain.errors import DataError

SHOWN = 5
"""So many of the examples that were left out are named."""
ASSISTANT = "assistant"
"""The role that a model learns."""
_CONLL = (".conll", ".conllu", ".bio", ".iob", ".iob2", ".txt")


@dataclass(frozen=True)
class Example:
    """One example; of its fields a task has some, the others are as they are by default."""

    where: str
    """Its place in the file: `row 17`, `line 4`; of a question its id."""
    text: str = ""
    """Of a question: its context."""
    pair: str | None = None
    """The second text; the question; what a sequence is made into."""
    label: str | None = None
    """None: the file does not say."""
    number: float | None = None
    """The label of a regression."""
    tokens: tuple[str, ...] = ()
    tags: tuple[str, ...] | None = None
    messages: tuple[dict[str, str], ...] = ()
    """Of a conversation all, each with `role` and `content`; the last of an assistant's is `pair`."""
    answers: tuple[Answer, ...] | None = None
    """Of a question all that count as right; empty: it cannot be answered from its context."""


@dataclass(frozen=True)
class Examples:
    """The examples of a file, in its order."""

    path: Path
    examples: list[Example]
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """Those left out: where, and why."""

    def __len__(self) -> int:
        return len(self.examples)

    def complaints(self) -> str:
        """What was left out, counted by reason, the first of them named; empty: nothing."""
        if not self.skipped:
            return ""
        total = len(self.examples) + len(self.skipped)
        reasons = ", ".join(f"{count:,} {why}" for why, count in Counter(why for _, why in self.skipped).most_common())
        places = ", ".join(where for where, _ in self.skipped[:SHOWN])
        more = f" and {len(self.skipped) - SHOWN:,} more" if len(self.skipped) > SHOWN else ""
        return f"{self.path}: {len(self.skipped):,} of {total:,} examples left out: {reasons} ({places}{more})"


def read_examples(path: Path, task: Task, columns: ColumnsConfig, *, labelled: bool = True) -> Examples:
    """The examples of a task in a file, whose name tells its kind: `.csv`, `.tsv`, `.jsonl`, `.parquet`, `.arrow`;
    for tagging CoNLL (`.conll`, `.txt` …) as well, for question answering SQuAD's `.json` alone.

    Args:
        path: The file; CSV and JSON lines may be compressed (`.gz`, `.zst`).
        task: Decides what is read.
        columns: What the columns of a table are called.
        labelled: Examples without a label are left out; else they may have none, and the column may be missing.

    Raises:
        DataError: The file cannot be read, has no such column, or holds no example.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    found = _READERS[task](path, columns, labelled)
    if not found.examples:
        raise DataError(found.complaints() or f"{path}: holds no example")
    return found


def labels_of(examples: Examples) -> list[str]:
    """The classes, or tags, that occur, in order: numbers by their value, else by the alphabet."""
    tags = {tag for example in examples.examples for tag in example.tags or ()}
    return in_order(tags | {example.label for example in examples.examples if example.label is not None})


def in_order(labels: set[str]) -> list[str]:
    """Labels in a fixed order: numbers by their value, else by the alphabet, `O` first among tags."""
    if labels and all(label.lstrip("-").isdecimal() for label in labels):
        return sorted(labels, key=int)
    return sorted(labels, key=lambda label: (label != "O", label.partition("-")[::-1]))


def check_labels(examples: Examples, known: Sequence[str], of: str) -> None:
    """Refuse labels that `known` does not have: a score that counts them as wrong would mislead.

    Args:
        examples: Of another file.
        known: Those the model can give.
        of: Where they come from, for the message.

    Raises:
        DataError: Naming each and how often it occurs.
    """
    counts = Counter(
        tag for example in examples.examples for tag in example.tags or (example.label,) if tag is not None
    )
    unknown = {label: count for label, count in counts.items() if label not in set(known)}
    if unknown:
        listed = ", ".join(f"{label!r} ({count:,} times)" for label, count in sorted(unknown.items())[:SHOWN])
        more = f" and {len(unknown) - SHOWN:,} more" if len(unknown) > SHOWN else ""
        raise DataError(
            f"{examples.path}: has labels that {of} does not: {listed}{more}; it has {', '.join(map(repr, known))}"
        )


def tag_scheme(examples: Examples) -> Scheme:
    """How the tags of a file mark entities.

    Raises:
        DataError: They follow no scheme.
    """
    try:
        return scheme_of({tag for example in examples.examples for tag in example.tags or ()})
    except ValueError as error:
        raise DataError(f"{examples.path}: {error}") from None


def _texts(path: Path, columns: ColumnsConfig, labelled: bool, of_label: Callable[[Any], Any], kind: str) -> Examples:
    names = [columns.text, *([columns.text_pair] if columns.text_pair else [])]
    table = _table(path, names, columns.label, labelled)
    examples, skipped = [], []
    labels = table.column(columns.label)
    for where, text, pair, value in zip(
        table.places(), table.column(columns.text), table.column(columns.text_pair), labels, strict=True
    ):
        label = of_label(value)
        if why := _missing(text, pair, bool(columns.text_pair)) or (
            "without a label" if labelled and label is None else ""
        ):
            skipped.append((where, why))
        elif isinstance(label, ValueError):
            raise DataError(f"{path}, {where}: the value of {columns.label!r} is {value!r}: {label}")
        else:
            examples.append(Example(where, text, pair, **{kind: label}))
    return Examples(path, examples, skipped)


def _table(path: Path, names: list[str], label: str, labelled: bool) -> Table:
    return read_table(path, [*names, label]) if labelled else read_table(path, names, [label])


def _missing(text: Any, pair: Any, paired: bool) -> str:
    for given in (text, pair) if paired else (text,):
        if given is None or (isinstance(given, str) and not given.strip()):
            return "with an empty text"
        if not isinstance(given, str):
            return "whose text is none"
    return ""


def _class(value: Any) -> str | ValueError | None:
    """A class by its name; a number is one, too."""
    if value is None or value == "":
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | str):
        return str(value).strip()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return ValueError("a class is text or a whole number (a fraction would be for finetune.task=regression)")


def _number(value: Any) -> float | ValueError | None:
    if value is None or value == "":
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return ValueError("a regression learns numbers")
    return number if abs(number) < float("inf") else ValueError("a regression learns finite numbers")


def _classification(path: Path, columns: ColumnsConfig, labelled: bool) -> Examples:
    return _texts(path, columns, labelled, _class, "label")


def _regression(path: Path, columns: ColumnsConfig, labelled: bool) -> Examples:
    return _texts(path, columns, labelled, _number, "number")


def _tagging(path: Path, columns: ColumnsConfig, labelled: bool) -> Examples:
    if path.suffix in _CONLL:
        found = [Example(where, tokens=tokens, tags=tags) for where, tokens, tags in read_conll(path, labelled)]
        return _sound_tags(path, found, [], labelled)
    table = _table(path, [columns.tokens], columns.tags, labelled)
    examples, skipped = [], []
    for where, tokens, tags in zip(
        table.places(), table.column(columns.tokens), table.column(columns.tags), strict=True
    ):
        if not isinstance(tokens, list) or not all(isinstance(token, str) and token.strip() for token in tokens):
            skipped.append((where, "whose tokens are no list of words"))
        elif not tokens:
            skipped.append((where, "without a token"))
        elif tags is None and labelled:
            skipped.append((where, "without tags"))
        elif tags is not None and len(tags) != len(tokens):
            skipped.append((where, "with more or fewer tags than tokens"))
        else:
            named = None if tags is None else tuple(map(str, tags))
            examples.append(Example(where, tokens=tuple(tokens), tags=named))
    return _sound_tags(path, examples, skipped, labelled)


def _sound_tags(path: Path, examples: list[Example], skipped: list[tuple[str, str]], labelled: bool) -> Examples:
    """Leave out sentences whose tags contradict one another."""
    found = Examples(path, examples, skipped)
    if not labelled:
        return found
    scheme = tag_scheme(found)
    wrong = [(example.where, why) for example in examples if (why := problem(example.tags or (), scheme))]
    if len(wrong) > len(examples) / 2:
        raise DataError(
            f"{path}: the tags of {len(wrong):,} of {len(examples):,} sentences are not {scheme}, {wrong[0][0]} for "
            f"one ({wrong[0][1]}); where an entity may begin with I- (IOB1), rewrite the file so that B- begins each"
        )
    places = {where for where, _ in wrong}
    sound = [example for example in examples if example.where not in places]
    return Examples(path, sound, [*skipped, *wrong])


def _question_answering(path: Path, columns: ColumnsConfig, labelled: bool) -> Examples:
    examples, skipped = [], []
    for question in read_squad(path, labelled):
        if question.wrong:
            skipped.append((question.id, question.wrong))
        else:
            examples.append(Example(question.id, question.context, question.question, answers=question.answers))
    return Examples(path, examples, skipped)


def _conversations(path: Path, column: str, labelled: bool) -> Examples:
    table = read_table(path, [column])
    examples, skipped = [], []
    for where, said in zip(table.places(), table.column(column), strict=True):
        if not isinstance(said, list) or not all(map(_is_message, said)):
            skipped.append((where, "whose messages are no list of role and content"))
            continue
        while labelled and said and said[-1]["role"] != ASSISTANT:  # nothing is learned of it
            said = said[:-1]
        if not said:
            skipped.append((where, "without an answer"))
        else:
            answered = said[-1]["role"] == ASSISTANT
            asked, answer = said[:-1] if answered else said, said[-1]["content"] if answered else None
            messages = tuple({"role": message["role"], "content": message["content"]} for message in said)
            examples.append(Example(where, asked[-1]["content"] if asked else "", answer, messages=messages))
    return Examples(path, examples, skipped)


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("role", "content"))


def _sequence_to_sequence(path: Path, columns: ColumnsConfig, labelled: bool) -> Examples:
    if columns.messages is not None:
        return _conversations(path, columns.messages, labelled)
    table = _table(path, [columns.source], columns.target, labelled)
    examples, skipped = [], []
    for where, source, target in zip(
        table.places(), table.column(columns.source), table.column(columns.target), strict=True
    ):
        if why := _missing(source, target, labelled):
            skipped.append((where, why))
        else:
            examples.append(Example(where, source, target))
    return Examples(path, examples, skipped)


_READERS: dict[str, Callable[[Path, ColumnsConfig, bool], Examples]] = {
    "classification": _classification,
    "regression": _regression,
    "tagging": _tagging,
    "question_answering": _question_answering,
    "sequence_to_sequence": _sequence_to_sequence,
}
