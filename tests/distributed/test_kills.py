"""A run that is killed at random moments and started again each time ends with the curve of one that never was."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bigtrain.config import Config, to_yaml

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

TOOL = Path(__file__).parents[2] / "tools" / "kill_at_random.py"
INTERVAL = 6
KILLS = 20
CLOCKS = {"step_seconds", "data_seconds", "tokens_per_second", "memory_bytes"}


def rows(run: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


def test_killed_and_started_again(tiny: Callable[..., Config], dataset: Path, tmp_path: Path) -> None:
    steps = INTERVAL * 2 * (KILLS + 1)
    config = tiny(
        f"data.train={dataset / 'train'}",
        f"data.validation={dataset / 'validation'}",
        "data.mask_document_boundaries=true",
        "model.hidden_dropout=0.1",
        "optimizer.lr=0.01",
        f"training.steps={steps}",
        "training.validation_interval=10",
        "training.validation_samples=6",
        f"checkpoint.interval={INTERVAL}",
    )
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    command = [sys.executable, str(TOOL), str(tmp_path / "run.yaml"), str(tmp_path / "runs")]
    done = subprocess.run([*command, "--kills", str(KILLS), "--seed", "1"], capture_output=True, text=True, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr

    killed, undisturbed = tmp_path / "runs/killed", tmp_path / "runs/undisturbed"
    curves = [
        [{key: value for key, value in row.items() if key not in CLOCKS} for row in rows(run, "metrics.jsonl")]
        for run in (killed, undisturbed)
    ]
    assert [row["step"] for row in curves[0] if "loss" in row] == list(range(1, steps + 1))
    assert curves[0] == curves[1]

    struck = json.loads((tmp_path / "runs/kills.json").read_text())
    assert len(struck) == KILLS
    begun = [row["step"] for row in rows(killed, "events.jsonl") if row["event"] in ("start", "resume")]
    assert begun == sorted(begun), "no start went behind the checkpoint of one before"
    known = [kill for kill in struck if kill["resumed_at"] is not None]
    assert [kill["resumed_at"] for kill in known] == [kill["checkpoint"] for kill in known]
    assert all(kill["last_step"] - kill["resumed_at"] <= 2 * INTERVAL for kill in known)
    assert {kill["moment"] for kill in struck} == {"start", "step", "save"}
    assert {kill["victim"] for kill in struck} == {"rank 0", "rank 1", "launcher"}
    assert sum(kill["half_written"] for kill in struck) >= 2, "some kills hit a save"
    left = sorted(path.name for path in (killed / "checkpoints").iterdir())
    kept = [f"step-{step:08d}" for step in (steps - INTERVAL, steps)]
    assert left == ["latest", *kept]
