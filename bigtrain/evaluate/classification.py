"""Classes: accuracy, precision, recall, F1, the confusion matrix, and how far the probabilities are to be believed."""

from typing import Any

import numpy as np
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

from bigtrain.data.examples import in_order
from bigtrain.evaluate.predictions import Predictions
from bigtrain.evaluate.scores import Metric, Scores, scored

BINS = 15
"""Of the calibration error, as in its paper."""
_AVERAGES = ("precision", "recall", "f1")


def score_classes(predictions: Predictions, seed: int | None = 0) -> Scores:
    """The figures of a classification.

    The macro averages go over all classes that occur as truth or as prediction.
    """
    classes = in_order({*predictions.truth, *predictions.predicted})
    truth, predicted = predictions.truth, predictions.predicted
    values = {"accuracy": float(accuracy_score(truth, predicted)), **_averages(truth, predicted, classes)}
    precision, recall, f1, support = precision_recall_fscore_support(truth, predicted, labels=classes, zero_division=0)
    per_class = {
        name: {
            "precision": float(precision[i]) if name in set(predicted) else None,
            "recall": float(recall[i]) if support[i] else None,
            "f1": float(f1[i]),
            "examples": int(support[i]),
        }
        for i, name in enumerate(classes)
    }
    details: dict[str, Any] = {
        "classes": classes,
        "per_class": per_class,
        "confusion_matrix": confusion_matrix(truth, predicted, labels=classes).tolist(),
    }
    metric = class_metric(predictions)
    scores = scored(values, metric, len(predictions), seed)
    if predictions.scores is not None:
        details["calibration"] = bins = reliability(predictions)
        scores |= scored({"ece": calibration_error(bins)})
    return Scores(predictions.task, predictions.name, len(predictions), scores, details, _notes(per_class))


def class_metric(predictions: Predictions) -> Metric:
    """Accuracy and macro averages of any examples, out of the confusion matrix that they make."""
    classes = in_order({*predictions.truth, *predictions.predicted})
    number = {name: i for i, name in enumerate(classes)}
    count = len(classes)
    cells = np.array(
        [number[t] * count + number[p] for t, p in zip(predictions.truth, predictions.predicted, strict=True)]
    )

    def metric(chosen: np.ndarray) -> dict[str, float]:
        confusion = np.bincount(cells[chosen], minlength=count * count).reshape(count, count)
        right, true, predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
        occurs = true + predicted > 0
        right, true, predicted = right[occurs], true[occurs], predicted[occurs]
        return {
            "accuracy": right.sum() / confusion.sum(),
            "precision": np.mean(right / np.maximum(predicted, 1)),
            "recall": np.mean(right / np.maximum(true, 1)),
            "f1": np.mean(2 * right / (true + predicted)),
        }

    return metric


def reliability(predictions: Predictions, bins: int = BINS) -> list[dict[str, float | int]]:
    """How often the likeliest class was right where its probability was about as high: equal bins of [0, 1]; empty ones
    are left out."""
    assert predictions.scores is not None
    likeliest = [max(scores, key=lambda name: scores[name]) for scores in predictions.scores]
    confidence = np.array([scores[name] for scores, name in zip(predictions.scores, likeliest, strict=True)])
    right = np.array([name == truth for name, truth in zip(likeliest, predictions.truth, strict=True)])
    numbers = np.minimum((confidence * bins).astype(int), bins - 1)
    return [
        {
            "low": number / bins,
            "high": (number + 1) / bins,
            "examples": int((numbers == number).sum()),
            "confidence": float(confidence[numbers == number].mean()),
            "accuracy": float(right[numbers == number].mean()),
        }
        for number in sorted(set(numbers.tolist()))
    ]


def calibration_error(bins: list[dict[str, float | int]]) -> float:
    """Expected calibration error (Guo et al. 2017, arXiv:1706.04599, equation 3)."""
    total = sum(bin["examples"] for bin in bins)
    return sum(bin["examples"] / total * abs(bin["accuracy"] - bin["confidence"]) for bin in bins)


def _averages(truth: list[str], predicted: list[str], classes: list[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for average in ("macro", "micro", "weighted"):
        figures = precision_recall_fscore_support(truth, predicted, labels=classes, average=average, zero_division=0)
        ending = "" if average == "macro" else f"_{average}"
        found |= {f"{name}{ending}": float(value) for name, value in zip(_AVERAGES, figures, strict=False)}
    return found


def _notes(per_class: dict[str, dict[str, Any]]) -> list[str]:
    absent = [name for name, row in per_class.items() if not row["examples"]]
    never = [name for name, row in per_class.items() if row["precision"] is None]
    notes = []
    if absent:
        notes.append(f"no example is of class {', '.join(absent)}: its recall is not defined, and counts as 0 in macro")
    if never:
        notes.append(f"class {', '.join(never)} was never predicted: its precision is not defined, and counts as 0")
    return notes
