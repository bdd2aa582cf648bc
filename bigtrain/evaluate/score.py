"""Scores of any task."""

from bigtrain.evaluate.answers import score_answers
from bigtrain.evaluate.classification import score_classes
from bigtrain.evaluate.predictions import Predictions
from bigtrain.evaluate.regression import score_numbers
from bigtrain.evaluate.scores import Scores
from bigtrain.evaluate.sequences import score_sequences
from bigtrain.evaluate.tagging import score_tags

_SCORERS = {
    "classification": score_classes,
    "regression": score_numbers,
    "tagging": score_tags,
    "question_answering": score_answers,
    "sequence_to_sequence": score_sequences,
}


def score(predictions: Predictions, seed: int | None = 0) -> Scores:
    """The figures of a task's predictions, with intervals by a bootstrap over the examples, which `seed` decides;
    None: without intervals."""
    return _SCORERS[predictions.task](predictions, seed)
