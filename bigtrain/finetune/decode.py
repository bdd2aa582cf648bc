"""From a head's outputs to what they say of each example. Nothing here needs torch."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from bigtrain.config import Config
from bigtrain.data.examples import Example
from bigtrain.evaluate.predictions import TRUTH, Predictions, truth_of
from bigtrain.finetune.encode import Encoded, Item


def decode(
    config: Config, encoded: Encoded, outputs: Sequence[np.ndarray], labels: Sequence[str]
) -> list[dict[str, Any]]:
    """A row of predictions for each example, in order; see :mod:`bigtrain.evaluate.predictions`.

    Args:
        config: The run's.
        encoded: The examples.
        outputs: What the head gave of each item, in order.
        labels: All classes or tags.
    """
    task = config.finetune.task
    assert task is not None, "the configuration was validated"
    of_example: dict[int, list[tuple[Item, np.ndarray]]] = defaultdict(list)
    for item, values in zip(encoded.items, outputs, strict=True):
        of_example[item.example].append((item, values))
    rows = []
    for number, example in enumerate(encoded.examples.examples):
        if number not in of_example:
            continue
        row = {"id": example.where, **_said(config, example, of_example[number], labels)}
        truth = truth_of(example, task)
        rows.append(row if truth is None else {**row, TRUTH[task]: truth})
    return rows


def as_predictions(config: Config, rows: Sequence[dict[str, Any]], name: str) -> Predictions | None:
    """The same to be scored; None where not all examples say what is right."""
    task = config.finetune.task
    assert task is not None, "the configuration was validated"
    if not all(TRUTH[task] in row for row in rows):
        return None
    return Predictions(
        task,
        name,
        [row["id"] for row in rows],
        [row["predicted"] for row in rows],
        [row[TRUTH[task]] for row in rows],
        [row["scores"] for row in rows] if task == "classification" else None,
    )


def _said(
    config: Config, example: Example, parts: list[tuple[Item, np.ndarray]], labels: Sequence[str]
) -> dict[str, Any]:
    (item, values), task = parts[0], config.finetune.task
    if task == "classification":
        shares = softmax(values)
        scores = {label: float(share) for label, share in zip(labels, shares, strict=True)}
        return {"predicted": labels[int(values.argmax())], "scores": scores}
    if task == "regression":
        return {"predicted": float(values[0])}
    if task == "tagging":
        best = values.argmax(-1)
        unread = "O" if "O" in labels else labels[0]
        tags = [labels[int(best[place])] if place >= 0 else unread for place in item.places]
        return {"tokens": list(example.tokens), "predicted": tags}
    answer, score = _answer(example.text, parts, config.finetune.max_answer_length)
    if score <= 0 and config.finetune.unanswerable:
        answer = ""
    return {"question": example.pair, "predicted": answer, "score": score}


def softmax(values: np.ndarray) -> np.ndarray:
    """Probabilities of logits along the last axis, float64."""
    powers = np.exp(values.astype(np.float64) - values.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def _answer(context: str, parts: Sequence[tuple[Item, np.ndarray]], longest: int) -> tuple[str, float]:
    """The best stretch of the context over all windows, and by how much it is better than no answer
    (arXiv:1810.04805, section 4.3)."""
    best, nothing = (-np.inf, 0, 0), np.inf
    for item, values in parts:
        begins, ends = values[: len(item.ids), 0], values[: len(item.ids), 1]
        nothing = min(nothing, float(begins[item.speaks] + ends[item.speaks]))
        inside = np.array([end > begin for begin, end in item.spans])
        scores = np.where(inside[:, None] & inside[None], begins[:, None] + ends[None], -np.inf)
        scores = np.triu(scores) - np.where(np.tri(len(inside), k=-1) > 0, np.inf, 0)
        scores[np.triu_indices(len(inside), longest)] = -np.inf
        first, last = divmod(int(scores.argmax()), len(inside))
        if scores[first, last] > best[0]:
            best = float(scores[first, last]), item.spans[first][0], item.spans[last][1]
    score = best[0] - nothing
    return context[best[1] : best[2]].strip(), float(score) if np.isfinite(score) else 0.0
