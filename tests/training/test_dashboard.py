"""Weights & Biases without a network: one id a run, whatever happens to its processes."""

from collections.abc import Callable
from pathlib import Path

import pytest

from bigtrain.config import Config
from bigtrain.training.dashboard import Dashboard


def test_disabled_leaves_nothing(tiny: Callable[..., Config], tmp_path: Path) -> None:
    dashboard = Dashboard(tiny(), tmp_path)
    dashboard.log({"step": 1, "loss": 2.0})
    dashboard.close(0)
    assert list(tmp_path.iterdir()) == []


def test_offline_lies_in_the_runs_folder_under_one_id(
    tiny: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    run = tmp_path / "first"
    run.mkdir()
    for step in (1, 2):
        dashboard = Dashboard(tiny("logging.wandb=offline"), run)
        dashboard.log({"step": step, "loss": 2.0, "model_flops_utilization": None})
        dashboard.close(0)
    run_id = (run / "wandb/run-id").read_text()
    written = sorted((run / "wandb").glob(f"offline-run-*/run-{run_id}.wandb"))
    assert len(written) in (1, 2), "one folder a start; two starts in one second share it"
    assert all(path.stat().st_size > 0 for path in written)
    assert capfd.readouterr() == ("", "")
