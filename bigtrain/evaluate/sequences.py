"""Texts made out of texts: BLEU and chrF by sacreBLEU, with the signatures that say how."""

from collections.abc import Sequence
from typing import Any

from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.metrics.base import Metric
from sacrebleu.significance import PairedTest

from bigtrain.evaluate.predictions import Predictions
from bigtrain.evaluate.scores import RESAMPLES, Score, Scores


def score_sequences(predictions: Predictions, seed: int | None = 0) -> Scores:
    """BLEU and chrF with one reference, on the text as it is; the intervals are sacreBLEU's own bootstrap."""
    if seed is None:
        corpus = [*predictions.predicted], [[*predictions.truth]]
        plain = {"bleu": BLEU().corpus_score(*corpus), "chrf": CHRF().corpus_score(*corpus)}
        values = {name: Score(float(result.score)) for name, result in plain.items()}
        return Scores(predictions.task, predictions.name, len(predictions), values)
    (found,), signatures = _paired([predictions])
    scores = {
        name: Score(float(result.score), float(result.mean - result.ci), float(result.mean + result.ci))
        for name, result in found.items()
    }
    words = [(len(p.split()), len(t.split())) for p, t in zip(predictions.predicted, predictions.truth, strict=True)]
    details = {"signatures": signatures, "length_ratio": sum(p for p, _ in words) / max(sum(t for _, t in words), 1)}
    empty = sum(not text.strip() for text in predictions.predicted)
    notes = [f"{empty:,} predictions are empty"] if empty else []
    return Scores(predictions.task, predictions.name, len(predictions), scores, details, notes)


def paired_sequences(first: Predictions, second: Predictions) -> dict[str, tuple[float, float]]:
    """Difference of each figure, and the p-value of sacreBLEU's paired bootstrap (Koehn 2004, W04-3250)."""
    (one, other), _ = _paired([first, second])
    return {name: (float(other[name].score - one[name].score), float(other[name].p_value)) for name in one}


def _paired(systems: Sequence[Predictions]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    named: list[tuple[str, Sequence[str]]] = [
        (f"{number} {system.name}", list(system.predicted)) for number, system in enumerate(systems)
    ]
    metrics: dict[str, Metric] = {
        "BLEU": BLEU(references=[systems[0].truth]),
        "chrF2": CHRF(references=[systems[0].truth]),
    }
    test = PairedTest(named, metrics, [systems[0].truth], test_type="bs", n_samples=RESAMPLES)
    signatures, results = test()
    names = {"BLEU": "bleu", "chrF2": "chrf"}
    found = [
        {names[key]: column[number] for key, column in results.items() if key in names}
        for number in range(len(systems))
    ]
    return found, {names[key]: str(signature) for key, signature in signatures.items()}
