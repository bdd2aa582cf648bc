"""Numbers: correlations and the root mean squared error."""

import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import mean_absolute_error, root_mean_squared_error

from bigtrain.evaluate.predictions import Predictions
from bigtrain.evaluate.scores import Metric, Scores, scored


def score_numbers(predictions: Predictions, seed: int | None = 0) -> Scores:
    """The figures of a regression. Correlations are not defined where all numbers of a side are the same."""
    metric = number_metric(predictions)
    everything = np.arange(len(predictions))
    values = metric(everything)
    notes = []
    if not np.isfinite(values["pearson"]):
        notes.append("all numbers of one side are the same: correlations are not defined")
    details = {"points": [list(pair) for pair in zip(predictions.truth, predictions.predicted, strict=True)][:2000]}
    scores = scored(values, metric, len(predictions), seed)
    return Scores(predictions.task, predictions.name, len(predictions), scores, details, notes)


def number_metric(predictions: Predictions) -> Metric:
    """The figures of any examples."""
    truth, predicted = np.asarray(predictions.truth), np.asarray(predictions.predicted)

    def metric(chosen: np.ndarray) -> dict[str, float]:
        t, p = truth[chosen], predicted[chosen]
        varies = len(t) > 1 and np.ptp(t) > 0 and np.ptp(p) > 0
        return {
            "pearson": float(pearsonr(t, p).statistic) if varies else float("nan"),
            "spearman": float(spearmanr(t, p).statistic) if varies else float("nan"),
            "rmse": float(root_mean_squared_error(t, p)),
            "mae": float(mean_absolute_error(t, p)),
        }

    return metric
