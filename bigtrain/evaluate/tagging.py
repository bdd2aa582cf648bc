"""Tags: whole entities as `seqeval` counts them, or each token's tag where tags mark none."""

from itertools import chain

import numpy as np
from seqeval.metrics import classification_report
from sklearn.metrics import accuracy_score

from bigtrain.data.tags import Scheme, entities, scheme_of
from bigtrain.errors import DataError
from bigtrain.evaluate.classification import score_classes
from bigtrain.evaluate.predictions import Predictions
from bigtrain.evaluate.scores import Metric, Scores, scored


def score_tags(predictions: Predictions, seed: int | None = 0) -> Scores:
    """The figures of tagging: an entity is right if its type and both its ends are (`conlleval`'s rule).

    Plain tags are scored as classes, token by token; the interval is over sentences either way.

    Raises:
        DataError: The tags follow no scheme.
    """
    scheme = _scheme(predictions)
    metric = tag_metric(predictions)
    if scheme == "plain":
        tokens = score_classes(_by_token(predictions))
        values = {name: score.value or 0.0 for name, score in tokens.scores.items()}
        scores = scored(values, metric, len(predictions), seed)
        return Scores(predictions.task, predictions.name, len(predictions), scores, tokens.details, tokens.notes)
    report = classification_report(predictions.truth, predictions.predicted, output_dict=True, zero_division=0)
    micro = report.pop("micro avg")
    macro = report.pop("macro avg")
    report.pop("weighted avg")
    values = {
        "f1": float(micro["f1-score"]),
        "precision": float(micro["precision"]),
        "recall": float(micro["recall"]),
        "f1_macro": float(macro["f1-score"]),
        "accuracy": float(accuracy_score([*chain(*predictions.truth)], [*chain(*predictions.predicted)])),
    }
    per_class = {
        name: {
            "precision": float(row["precision"]),
            "recall": float(row["recall"]) if row["support"] else None,
            "f1": float(row["f1-score"]),
            "examples": int(row["support"]),
        }
        for name, row in report.items()
    }
    details = {"scheme": scheme, "classes": list(per_class), "per_class": per_class}
    absent = [name for name, row in per_class.items() if not row["examples"]]
    notes = [f"no entity is of type {', '.join(absent)}: its recall is not defined"] if absent else []
    scores = scored(values, metric, len(predictions), seed)
    return Scores(predictions.task, predictions.name, len(predictions), scores, details, notes)


def tag_metric(predictions: Predictions) -> Metric:
    """Precision, recall and F1 of any sentences, over all entities; of plain tags their accuracy."""
    scheme = _scheme(predictions)
    pairs = list(zip(predictions.truth, predictions.predicted, strict=True))
    right = np.array([sum(t == p for t, p in zip(*pair, strict=True)) for pair in pairs])
    tokens = np.array([len(truth) for truth, _ in pairs])
    found = [(set(entities(truth, scheme)), set(entities(predicted, scheme))) for truth, predicted in pairs]
    both, true, guessed = (
        np.array(counts) for counts in zip(*((len(t & p), len(t), len(p)) for t, p in found), strict=True)
    )

    def metric(chosen: np.ndarray) -> dict[str, float]:
        accuracy = float(right[chosen].sum() / max(tokens[chosen].sum(), 1))
        if scheme == "plain":
            return {"accuracy": accuracy}
        hits, gold, said = both[chosen].sum(), true[chosen].sum(), guessed[chosen].sum()
        return {
            "f1": 2 * hits / max(gold + said, 1),
            "precision": hits / max(said, 1),
            "recall": hits / max(gold, 1),
            "accuracy": accuracy,
        }

    return metric


def _scheme(predictions: Predictions) -> Scheme:
    try:
        return scheme_of(chain(*predictions.truth))
    except ValueError as error:
        raise DataError(f"{predictions.name}: {error}") from None


def _by_token(predictions: Predictions) -> Predictions:
    truth, predicted = [*chain(*predictions.truth)], [*chain(*predictions.predicted)]
    return Predictions("classification", predictions.name, [""] * len(truth), predicted, truth)
