"""Answers to questions: SQuAD's exact match and F1.

The definitions are those of the data sets' papers (arXiv:1606.05250, section 6.1; arXiv:1806.03822 for questions
without an answer).
"""

import re
import string
from collections import Counter

import numpy as np

from bigtrain.evaluate.predictions import Predictions
from bigtrain.evaluate.scores import Scores, mean_metric, scored

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def score_answers(predictions: Predictions, seed: int | None = 0) -> Scores:
    """Exact match and F1 in percent, the best over a question's right answers; of questions with and without an answer
    apart where there are both."""
    exact, f1 = answer_scores(predictions)
    answerable = np.array([bool(answers) for answers in predictions.truth])
    values = {"f1": np.mean(f1), "exact_match": np.mean(exact)}
    if answerable.any() and not answerable.all():
        for name, chosen in (("answerable", answerable), ("unanswerable", ~answerable)):
            values |= {f"f1_{name}": np.mean(f1[chosen]), f"exact_match_{name}": np.mean(exact[chosen])}
    metric = mean_metric({"f1": list(f1), "exact_match": list(exact)})
    details = {"answerable": int(answerable.sum()), "unanswerable": int((~answerable).sum())}
    scores = scored({name: float(value) for name, value in values.items()}, metric, len(predictions), seed)
    return Scores(predictions.task, predictions.name, len(predictions), scores, details)


def answer_scores(predictions: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """Exact match and F1 of each question, in percent: float64 [questions]."""
    pairs = [
        (predicted, [answer for answer in answers if normalized(answer)] or [""])
        for predicted, answers in zip(predictions.predicted, predictions.truth, strict=True)
    ]
    exact = [100.0 * max(normalized(predicted) == normalized(a) for a in answers) for predicted, answers in pairs]
    f1 = [100.0 * max(word_f1(predicted, a) for a in answers) for predicted, answers in pairs]
    return np.array(exact), np.array(f1)


def normalized(text: str) -> str:
    """Without case, punctuation and articles, and one space between words."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def word_f1(predicted: str, answer: str) -> float:
    """Harmonic mean of the shares of words that both have; where one has none, whether the other has none either."""
    ours, theirs = normalized(predicted).split(), normalized(answer).split()
    if not ours or not theirs:
        return float(ours == theirs)
    shared = (Counter(ours) & Counter(theirs)).total()
    return 2 * shared / (len(ours) + len(theirs))
