"""Several runs of one configuration, one after the other, and what the held-out examples say of each.

Runs that differ in `training.seed` alone are one setting: its figure is their mean, with the deviation.
"""

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigtrain.config import Config
from bigtrain.finetune.judged import best_row, judged


@dataclass(frozen=True)
class Setting:
    """What was found of one setting."""

    name: str
    """Its overrides, without the seed."""
    values: list[float]
    """The best of the metric, of each seed."""

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """The sample's standard deviation; None of a single seed."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


def settings(config: Config, runs: Sequence[tuple[Path, str]]) -> list[Setting]:
    """What finished runs have found, the best first.

    Args:
        config: Any of them; they have the same metric.
        runs: The folder of each and its name, such as `optimizer.lr=0.001,training.seed=2`.
    """
    found: dict[str, list[float]] = defaultdict(list)
    for folder, name in runs:
        kept = ",".join(word for word in name.split(",") if not word.startswith("training.seed="))
        value: Any = best_row(config, judged(folder))[f"validation_{config.finetune.metric}"]
        found[kept or "all seeds"].append(value)
    lower = config.finetune.metric == "loss"
    return sorted((Setting(*item) for item in found.items()), key=lambda s: s.mean if lower else -s.mean)
