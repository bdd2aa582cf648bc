"""Starting a world of processes for a test, once for many cases."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bigtrain.launch.environment import World
from bigtrain.launch.local import run_workers

Histories = dict[str, list[list[float]]]


@pytest.fixture(scope="session")
def train_layouts(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, list[dict[str, Any]]], Histories]:
    """Train cases on a number of processes; gives (loss, gradient norm) of every step by name."""

    def run(nproc: int, cases: list[dict[str, Any]]) -> Histories:
        folder = tmp_path_factory.mktemp(f"world-{nproc}")
        (folder / "cases.json").write_text(json.dumps(cases))
        script = Path(__file__).with_name("train_layouts.py")
        command = [sys.executable, str(script), str(folder / "cases.json"), str(folder / "results.json")]
        exit_code = run_workers(command, World(nproc), log_dir=folder / "logs")
        assert exit_code == 0, f"see {folder / 'logs'}"
        return json.loads((folder / "results.json").read_text())

    return run
