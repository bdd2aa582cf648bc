"""Examples as the tokens that a model reads, in the frame of :mod:`bigtrain.data.framing`. Nothing here needs torch.

A text is judged at the token that speaks for it: the last one of gpt, which has read all others, and the first of bert.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from bigtrain.config import Config
from bigtrain.data.examples import Example, Examples
from bigtrain.data.framing import framing_of
from bigtrain.data.tokenizer import Span, Tokenizer
from bigtrain.errors import DataError
from bigtrain.finetune.chat import Chat

_NOWHERE: Span = (0, 0)


@dataclass(frozen=True)
class Item:
    """What a model reads at once: an example, or a window of one."""

    example: int
    """Its number among the examples."""
    ids: np.ndarray
    """int32 [s]"""
    labels: np.ndarray
    """[n]: a class, a number, the tags of all tokens, the first and the last token of an answer, or the next tokens."""
    weights: np.ndarray
    """float32 [n]: how much each counts in the loss."""
    speaks: int
    """The token that speaks for all."""
    first: int
    """Tokens of the first text, with what ends it."""
    places: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """Of tagging: the first token of every word that is read."""
    spans: Sequence[Span] = ()
    """Of a question: the characters of the context that each token stands for, (0, 0) of other tokens."""


@dataclass(frozen=True)
class Encoded:
    """The examples of a file as a model reads them."""

    examples: Examples
    items: list[Item]
    pad: int
    """The token that shorter ones are filled up with."""
    notes: list[str]
    """What had to be done to them, to be told."""

    def __len__(self) -> int:
        return len(self.items)


class Encoder:
    """Makes items of examples, as a configuration of fine-tuning says."""

    def __init__(self, config: Config, tokenizer: Tokenizer, labels: Sequence[str]) -> None:
        """`labels` are all classes or tags, in order."""
        self.config, self.tokenizer = config, tokenizer
        self.length = config.training.sequence_length
        self.numbers = {label: number for number, label in enumerate(labels)}
        self.framing = framing_of(config.model, tokenizer)
        self.chat = None if config.finetune.columns.messages is None else Chat(tokenizer)
        self._cut = 0

    def encode(self, examples: Examples, class_weights: Sequence[float] | None = None) -> Encoded:
        """All examples; one that is too long is cut, and that is told.

        Raises:
            DataError: None of them can be read.
        """
        self._cut = 0
        make = {
            "classification": self._text,
            "regression": self._text,
            "tagging": self._words,
            "question_answering": self._question,
            "sequence_to_sequence": self._sequence,
        }[self.config.finetune.task or ""]
        items: list[Item] = []
        for number, example in enumerate(examples.examples):
            items += make(number, example)
        if class_weights is not None:
            for item in items:
                item.weights[:] = class_weights[int(item.labels[0])]
        if not items:
            raise DataError(
                f"{examples.path}: no example fits into training.sequence_length ({self.length}) tokens; raise it"
            )
        notes = [note for note in (examples.complaints(), self._note(examples)) if note]
        return Encoded(examples, items, self.framing.pad, notes)

    def _note(self, examples: Examples) -> str:
        if not self._cut:
            return ""
        what = {
            "tagging": "were cut: words beyond are not tagged",
            "sequence_to_sequence": "were left out",
        }.get(self.config.finetune.task or "", "were cut")
        return (
            f"{examples.path}: {self._cut:,} of {len(examples):,} examples are longer than training.sequence_length "
            f"({self.length}) and {what}"
        )

    def _framed(self, first: Sequence[int], second: Sequence[int] | None) -> tuple[np.ndarray, int]:
        """The tokens with those around texts, and how many of them are the first text's."""
        whole, of_first = self.framing.around(first, second)
        return np.array(whole, dtype=np.int32), of_first

    def _speaks(self, length: int) -> int:
        return 0 if self.framing.begin else length - 1

    def _text(self, number: int, example: Example) -> Iterator[Item]:
        first = self.tokenizer.encode(example.text)
        second = None if example.pair is None else self.tokenizer.encode(example.pair)
        room = self.framing.room(self.length, texts=1 if second is None else 2)
        if len(first) + len(second or ()) > room:
            self._cut += 1
            first, second = _shortened(first, second, room)
        ids, of_first = self._framed(first, second)
        if self.config.finetune.task == "regression":
            given, label = example.number is not None, np.array([example.number or 0.0], dtype=np.float32)
        else:
            given, label = example.label is not None, np.array([self.numbers.get(example.label or "", 0)])
        yield Item(number, ids, label, np.full(1, given, dtype=np.float32), self._speaks(len(ids)), of_first)

    def _words(self, number: int, example: Example) -> Iterator[Item]:
        """A word's tag belongs to its first token."""
        text = " ".join(example.tokens)
        ids, spans = self.tokenizer.encode_with_spans(text)
        word_of = np.array([word for word, token in enumerate(example.tokens) for _ in range(len(token) + 1)])
        room = self.framing.room(self.length, texts=1)
        if len(ids) > room:
            self._cut += 1
        framed, of_first = self._framed(ids[:room], None)
        labels = np.zeros(len(framed), dtype=np.int64)
        weights = np.zeros(len(framed), dtype=np.float32)
        places = np.full(len(example.tokens), -1)
        for place, (begin, end) in enumerate(spans[:room], len(self.framing.begin)):
            if end > begin and places[word := word_of[end - 1]] < 0:
                places[word] = place
                if example.tags is not None:
                    labels[place], weights[place] = self.numbers.get(example.tags[word], 0), 1
        yield Item(number, framed, labels, weights, self._speaks(len(framed)), of_first, places)

    def _question(self, number: int, example: Example) -> Iterator[Item]:
        """Windows of the context, each with the question; where an answer is not in one its label is the token that
        speaks for all (arXiv:1810.04805, section 4.3)."""
        question = self.tokenizer.encode(example.pair or "")[: self.length // 2]
        ids, spans = self.tokenizer.encode_with_spans(example.text)
        room = self.framing.room(self.length, texts=2) - len(question)
        step = max(room - self.config.finetune.stride, room // 2, 1)
        answer = example.answers[0] if example.answers else None
        for first in range(0, max(len(ids) - room, 0) + step, step):
            framed, of_first = self._framed(question, ids[first : first + room])
            inside = [*([_NOWHERE] * of_first), *spans[first : first + room], _NOWHERE]
            speaks = self._speaks(len(framed))
            ends = [speaks, speaks]
            if answer is not None:
                covered = [
                    place
                    for place, (begin, end) in enumerate(inside)
                    if end > max(begin, answer.start) and begin < answer.start + len(answer.text)
                ]
                begin, end = answer.start, answer.start + len(answer.text)
                if covered and inside[covered[0]][0] <= begin and inside[covered[-1]][1] >= end:
                    ends = [covered[0], covered[-1]]
            weight = np.full(2, example.answers is not None, dtype=np.float32)
            yield Item(number, framed, np.array(ends), weight, speaks, of_first, spans=inside)

    def _conversation(self, number: int, example: Example) -> Iterator[Item]:
        """All turns; the loss is of the assistant's. Where the last is another's, an answer is to come."""
        assert self.chat is not None
        asked = example.messages if example.pair is None else example.messages[:-1]
        try:
            question = self.chat.question(asked)
            ids, said = self.chat.conversation(example.messages)
        except ValueError as error:
            raise DataError(f"{example.where}: the tokenizer's chat template cannot spell it: {error}") from None
        if example.pair is None:
            ids, said = [*question, self.tokenizer.eos_id], np.zeros(len(question) + 1, dtype=bool)
        if len(ids) - 1 > self.length:
            self._cut += 1
            return
        whole, weights = np.array(ids, dtype=np.int32), said[1:].astype(np.float32)
        yield Item(number, whole[:-1], whole[1:].astype(np.int64), weights, len(ids) - 2, len(question))

    def _sequence(self, number: int, example: Example) -> Iterator[Item]:
        """The prompt, what it is to be continued by, and the end; the loss is of the latter two. An encoder reads the
        prompt and an end, a decoder says the rest."""
        if self.chat is not None:
            yield from self._conversation(number, example)
            return
        prompt = self.tokenizer.encode(self.config.finetune.prompt.replace("{source}", example.text))
        answer = [*self.tokenizer.encode(example.pair or ""), *self.framing.end]
        if self.config.model.architecture == "t5":
            if max(len(prompt) + 1, len(answer)) > self.length:
                self._cut += 1
                return
            ids, _ = self._framed(prompt, None)
            yield Item(number, ids, np.array(answer), np.ones(len(answer), dtype=np.float32), 0, len(ids))
            return
        ids = np.array([*prompt, *answer], dtype=np.int32)
        if len(ids) - 1 > self.length:
            self._cut += 1
            return
        weights = (np.arange(1, len(ids)) >= len(prompt)).astype(np.float32)
        yield Item(number, ids[:-1], ids[1:].astype(np.int64), weights, len(ids) - 2, len(prompt))


def balanced(labels: Sequence[str], examples: Examples) -> list[float]:
    """A weight for each class with which all count as much: examples / (classes x examples of the class)."""
    counts = Counter(example.label for example in examples.examples)
    return [len(examples) / (len(labels) * counts[label]) for label in labels]


def _shortened(first: list[int], second: list[int] | None, room: int) -> tuple[list[int], list[int] | None]:
    """The longer of two texts gives way first."""
    if second is None:
        return first[:room], None
    keep_second = min(len(second), max(room - len(first), room // 2))
    return first[: room - keep_second], second[:keep_second]
