"""The validations of a run: which is best, and whether a better one is to be hoped for. Nothing here needs torch."""

from pathlib import Path
from typing import Any

from bigtrain.config import Config
from bigtrain.training import records

LOWER_IS_BETTER = "loss"
"""Of all metrics."""


def best_row(config: Config, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The validation that is best in `finetune.metric`, the first of equal ones."""
    key = f"validation_{config.finetune.metric}"
    sign = -1 if config.finetune.metric == LOWER_IS_BETTER else 1
    return max(rows, key=lambda row: float("-inf") if row[key] is None else sign * row[key])


def judged(run: Path) -> list[dict[str, Any]]:
    """The validations so far, of a run's folder."""
    rows = records.read_rows(run / records.METRICS)
    return [row for row in rows if "validation_loss" in row]


def exhausted(config: Config, rows: list[dict[str, Any]]) -> bool:
    """Whether the last `finetune.patience` validations were no better than the best before."""
    if not config.finetune.patience or not rows:
        return False
    return len(rows) - 1 - rows.index(best_row(config, rows)) >= config.finetune.patience
