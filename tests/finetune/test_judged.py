"""Which validation is the best, when training ends, and what a sweep has found."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bigtrain.config import Config
from bigtrain.finetune.judged import best_row, exhausted, judged
from bigtrain.finetune.sweep import settings

Tiny = Callable[..., Config]


def rows(metric: str, *values: float | None) -> list[dict[str, Any]]:
    return [{"step": step, f"validation_{metric}": value} for step, value in enumerate(values, 1)]


@pytest.mark.parametrize(
    ("metric", "values", "best", "ended"),
    [
        ("accuracy", (0.5, 0.7, 0.7, 0.6), 2, True),
        ("accuracy", (0.5, 0.7, 0.6, 0.8), 4, False),
        ("loss", (0.9, 0.4, 0.5), 2, False),
        ("loss", (0.4, 0.5, 0.6), 1, True),
        ("f1", (None, 0.1), 2, False),  # not defined is no score
    ],
)
def test_the_best_is_the_first_of_equal_ones(
    tiny: Tiny, metric: str, values: tuple[float | None, ...], best: int, ended: bool
) -> None:
    config = tiny("finetune.task=classification", f"finetune.metric={metric}", "finetune.patience=2")
    found = rows(metric, *values)
    assert best_row(config, found)["step"] == best
    assert exhausted(config, found) == ended
    assert not exhausted(tiny("finetune.task=classification", f"finetune.metric={metric}"), found)


def test_seeds_are_put_together(tiny: Tiny, tmp_path: Path) -> None:
    """The best of each run; the mean and the sample's deviation of those that differ in the seed alone."""
    best = {("1e-3", 1): 0.6, ("1e-3", 2): 0.8, ("1e-2", 1): 0.5, ("1e-2", 2): 0.5}
    runs = []
    for (lr, seed), value in best.items():
        name = f"optimizer.lr={lr},training.seed={seed}"
        (tmp_path / name).mkdir()
        lines = [{"step": 1, "loss": 2.0}, {"step": 1, "validation_loss": 1.0, "validation_accuracy": value - 0.1}]
        lines.append({"step": 2, "validation_loss": 1.0, "validation_accuracy": value})
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        runs.append((tmp_path / name, name))
    assert len(judged(runs[0][0])) == 2
    found = settings(tiny("finetune.task=classification", "finetune.metric=accuracy"), runs)
    assert [setting.name for setting in found] == ["optimizer.lr=1e-3", "optimizer.lr=1e-2"]
    assert (found[0].mean, found[0].deviation) == (pytest.approx(0.7), pytest.approx(0.1 * 2**0.5))
    assert settings(tiny("finetune.metric=accuracy"), runs[:1])[0].deviation is None
