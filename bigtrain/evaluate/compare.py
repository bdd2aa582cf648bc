"""Two models on the same examples: is one better, or is that chance?"""

from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from bigtrain.errors import DataError
from bigtrain.evaluate.answers import answer_scores
from bigtrain.evaluate.classification import class_metric
from bigtrain.evaluate.predictions import Predictions
from bigtrain.evaluate.regression import number_metric
from bigtrain.evaluate.scores import Metric, mean_metric, resamples
from bigtrain.evaluate.sequences import paired_sequences
from bigtrain.evaluate.tagging import tag_metric


@dataclass(frozen=True)
class Difference:
    """How far the second model is from the first."""

    metric: str
    difference: float
    """Second minus first."""
    p_value: float
    """How likely a difference as large is between models that are equally good."""
    test: str


def compare(first: Predictions, second: Predictions, seed: int = 0) -> list[Difference]:
    """Paired tests between two models' predictions of the same examples.

    Accuracy by McNemar's test, exact (a binomial test on the examples that one model alone has right; McNemar 1947);
    all other figures by a paired bootstrap (Koehn 2004, W04-3250), of BLEU and chrF sacreBLEU's own.

    Raises:
        DataError: They are not of the same examples in the same order.
    """
    if first.task != second.task or first.truth != second.truth:
        raise DataError(
            f"{first.name} ({len(first):,} examples) and {second.name} ({len(second):,}) are not predictions of the "
            "same examples in the same order"
        )
    if first.task == "sequence_to_sequence":
        return [Difference(name, d, p, "paired bootstrap") for name, (d, p) in paired_sequences(first, second).items()]
    tested = _bootstrap(_metric(first), _metric(second), len(first), seed)
    if first.task != "classification":
        return tested
    return [mcnemar(first, second), *(row for row in tested if row.metric != "accuracy")]


def mcnemar(first: Predictions, second: Predictions) -> Difference:
    """McNemar's exact test of two accuracies."""
    pairs = [
        (one == truth, other == truth)
        for one, other, truth in zip(first.predicted, second.predicted, first.truth, strict=True)
    ]
    gained, lost = pairs.count((False, True)), pairs.count((True, False))
    p_value = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    return Difference("accuracy", (gained - lost) / len(pairs), float(p_value), "McNemar, exact")


def _metric(predictions: Predictions) -> Metric:
    if predictions.task == "question_answering":
        exact, f1 = answer_scores(predictions)
        return mean_metric({"f1": list(f1), "exact_match": list(exact)})
    return {"classification": class_metric, "regression": number_metric, "tagging": tag_metric}[predictions.task](
        predictions
    )


def _bootstrap(first: Metric, second: Metric, count: int, seed: int) -> list[Difference]:
    """The p-value is the share of resamples whose difference is as far from the mean of all as the true one is from
    0."""
    everything = np.arange(count)
    one, other = first(everything), second(everything)
    drawn: dict[str, list[float]] = {name: [] for name in one}
    for chosen in resamples(count, seed):
        left, right = first(chosen), second(chosen)
        for name, differences in drawn.items():
            differences.append(right[name] - left[name])
    found = []
    for name, differences in drawn.items():
        spread = np.array([d for d in differences if np.isfinite(d)])
        observed = other[name] - one[name]
        if not np.isfinite(observed) or not spread.size:
            continue
        beyond = int((np.abs(spread - spread.mean()) >= abs(observed)).sum())
        p_value = (beyond + 1) / (len(spread) + 1)
        found.append(Difference(name, float(observed), p_value, "paired bootstrap"))
    return found
