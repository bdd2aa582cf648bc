"""What every task's scores are: values with intervals, and what is told besides."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

RESAMPLES = 1000
LEVEL = 0.95

Metric = Callable[[np.ndarray], dict[str, float]]
"""Figures of the examples with these numbers, which may be repeated."""


@dataclass(frozen=True)
class Score:
    """A figure and its interval."""

    value: float | None
    """None: it is not defined here."""
    low: float | None = None
    """The 95 % interval of a bootstrap over the examples; None: not estimated."""
    high: float | None = None


@dataclass(frozen=True)
class Scores:
    """All that is found about a model's predictions."""

    task: str
    name: str
    examples: int
    scores: dict[str, Score]
    """The figures, the one to compare models by first."""
    details: dict[str, Any] = field(default_factory=dict)
    """Tables and curves, ready for JSON."""
    notes: list[str] = field(default_factory=list)
    """What a reader must know to read the figures rightly."""

    def as_json(self) -> dict[str, Any]:
        """For a file; what is not defined is null."""
        return asdict(self)


def scored(
    values: dict[str, float], metric: Metric | None = None, count: int = 0, seed: int | None = 0
) -> dict[str, Score]:
    """Figures with the intervals of those that `metric` gives, by the percentiles of a bootstrap over `count` examples
    (Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13)."""
    spread: dict[str, list[float]] = {}
    if metric is not None and seed is not None and count > 1:
        for chosen in resamples(count, seed):
            for name, value in metric(chosen).items():
                spread.setdefault(name, []).append(value)
    found = {}
    for name, value in values.items():
        drawn = [v for v in spread.get(name, ()) if math.isfinite(v)]
        low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if drawn else (None, None)
        found[name] = Score(
            float(value) if math.isfinite(value) else None,
            None if low is None else float(low),
            None if high is None else float(high),
        )
    return found


def resamples(count: int, seed: int, times: int = RESAMPLES) -> Iterator[np.ndarray]:
    """Numbers of `count` examples drawn with replacement, so many times, always the same for a seed."""
    random = np.random.default_rng(seed)
    for _ in range(times):
        yield random.integers(count, size=count)


def mean_metric(columns: dict[str, Sequence[float]]) -> Metric:
    """Figures that are means over the examples."""
    values = {name: np.asarray(column, dtype=float) for name, column in columns.items()}
    return lambda chosen: {name: float(column[chosen].mean()) for name, column in values.items()}
