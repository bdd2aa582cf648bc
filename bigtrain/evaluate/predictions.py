"""A model's predictions beside the truth: a JSON object a line, or the truth in a file of its own.

A line has `predicted`, and as the truth `label` (classification, regression), `tags` (tagging), `answers` (question
answering) or `target` (sequence to sequence). `id` says which example it is, `scores` give each class's probability.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigtrain.config.tasks import ColumnsConfig, Task
from bigtrain.data.examples import Example, read_examples
from bigtrain.errors import DataError

TRUTH = {
    "classification": "label",
    "regression": "label",
    "tagging": "tags",
    "question_answering": "answers",
    "sequence_to_sequence": "target",
}
"""The key of a line that says what would be right."""
_KINDS: dict[str, tuple[type, ...]] = {
    "classification": (str, int),
    "regression": (int, float),
    "tagging": (list,),
    "question_answering": (str,),
    "sequence_to_sequence": (str,),
}


@dataclass(frozen=True)
class Predictions:
    """What a model said of each example, and what is right."""

    task: Task
    name: str
    """What a table calls the model."""
    ids: list[str]
    predicted: list[Any]
    """Classes and texts as text, of a regression numbers, of tagging lists of tags."""
    truth: list[Any]
    """The same; of a question the texts of all right answers, none where it has none."""
    scores: list[dict[str, float]] | None = None
    """Of classification: each class's probability, of every example."""

    def __len__(self) -> int:
        return len(self.ids)


def read_predictions(
    path: Path, task: Task, labels: Path | None = None, columns: ColumnsConfig | None = None
) -> Predictions:
    """The predictions in a JSON-lines file.

    Args:
        path: The file.
        task: Decides what a line must have.
        labels: A file of examples, as fine-tuning reads it, that has the truth; predictions are in its order, or
            have an `id` that names its row. Default: the lines themselves have it.
        columns: What the columns of `labels` are called.

    Raises:
        DataError: A file cannot be read, a line lacks a key or has a wrong value, or both files do not go together.
    """
    rows = list(_rows(path))
    if not rows:
        raise DataError(f"{path}: holds no prediction")
    for number, row in rows:
        if not isinstance(row.get("predicted"), _KINDS[task]) or isinstance(row["predicted"], bool):
            given = f"{row['predicted']!r}" if "predicted" in row else "missing"
            raise DataError(f"{path}, line {number}: predicted is {given}; for {task} it takes {_takes(task)}")
    ids = [str(row.get("id", f"line {number}")) for number, row in rows]
    if labels is None:
        truth = [_truth(path, number, row, task) for number, row in rows]
    else:
        truth = _from_labels(path, [row for _, row in rows], labels, task, columns or ColumnsConfig())
    predicted = [_value(row["predicted"], task) for _, row in rows]
    if task == "tagging":
        _check_lengths(path, ids, predicted, truth)
    return Predictions(
        task, path.stem, ids, predicted, truth, _scores(path, rows) if task == "classification" else None
    )


def write_predictions(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    """Write what :func:`read_predictions` reads."""
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


def truth_of(example: Example, task: Task) -> Any:
    """What is right for an example, as a line of predictions has it; None where its file does not say."""
    if task == "question_answering":
        return None if example.answers is None else [answer.text for answer in example.answers]
    if task == "tagging":
        return None if example.tags is None else list(example.tags)
    return {"classification": example.label, "regression": example.number, "sequence_to_sequence": example.pair}[task]


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: no JSON object")
        yield number, row


def _takes(task: Task) -> str:
    return {
        "classification": "the name of a class",
        "regression": "a number",
        "tagging": "a list of tags",
    }.get(task, "text, which may be empty")


def _truth(path: Path, number: int, row: dict[str, Any], task: Task) -> Any:
    key = TRUTH[task]
    given = row.get(key)
    kinds: tuple[type, ...] = (list,) if task == "question_answering" else _KINDS[task]
    if not isinstance(given, kinds):
        shown = f"{given!r}" if key in row else "missing"
        raise DataError(f"{path}, line {number}: {key} is {shown}; give what is right, here or in a file as --labels")
    return _value(given, task)


def _value(given: Any, task: Task) -> Any:
    if task == "classification":
        return str(given)
    if task == "regression":
        return float(given)
    return list(map(str, given)) if isinstance(given, list) else given


def _from_labels(path: Path, rows: list[dict[str, Any]], labels: Path, task: Task, columns: ColumnsConfig) -> list[Any]:
    found = read_examples(labels, task, columns)
    by_place = {example.where: truth_of(example, task) for example in found.examples}
    if all("id" in row for row in rows):
        unknown = [str(row["id"]) for row in rows if str(row["id"]) not in by_place]
        if unknown:
            raise DataError(
                f"{labels}: has no label for {len(unknown):,} of the {len(rows):,} predictions in {path}, "
                f"{unknown[0]!r} for one. {found.complaints()}".rstrip()
            )
        if len(by_place) > len({str(row["id"]) for row in rows}):
            missing = next(place for place in by_place if place not in {str(row["id"]) for row in rows})
            raise DataError(f"{path}: has no prediction for {missing!r} of {labels}: {len(rows):,} of {len(found):,}")
        return [by_place[str(row["id"])] for row in rows]
    if len(rows) != len(found) or found.skipped:
        raise DataError(
            f"{path} has {len(rows):,} predictions and {labels} {len(found):,} examples: without an id in each line "
            f"they are taken in order, and must be as many. {found.complaints()}".rstrip()
        )
    return list(by_place.values())


def _check_lengths(path: Path, ids: list[str], predicted: list[Any], truth: list[Any]) -> None:
    for name, ours, theirs in zip(ids, predicted, truth, strict=True):
        if len(ours) != len(theirs):
            raise DataError(f"{path}: {name} has {len(ours)} predicted tags for {len(theirs)} tokens")


def _scores(path: Path, rows: list[tuple[int, dict[str, Any]]]) -> list[dict[str, float]] | None:
    if not any("scores" in row for _, row in rows):
        return None
    for number, row in rows:
        given = row.get("scores")
        shares = list(given.values()) if isinstance(given, dict) else []
        sound = all(isinstance(share, int | float) and 0 <= share <= 1 for share in shares)
        if not sound or not math.isclose(sum(shares), 1.0, abs_tol=1e-3):
            raise DataError(f"{path}, line {number}: scores are the probability of each class, which sum to 1")
    return [row["scores"] for _, row in rows]
