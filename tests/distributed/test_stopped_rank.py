"""A real run of two processes, one of which is stopped: the watchdog of the other ends it and says so."""

import json
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from bigtrain.config import Config, to_yaml

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

STEP_TIMEOUT = 6.0


def test_a_rank_that_is_stopped(tiny: Callable[..., Config], dataset: Path, tmp_path: Path) -> None:
    """Rank 0 waits for it in a collective, in C; what it writes is read until it says no more."""
    run = tmp_path / "run"
    config = tiny(
        f"data.train={dataset / 'train'}",
        f"training.output_dir={run}",
        "training.steps=1000000",
        f"training.step_timeout={STEP_TIMEOUT}",
        "checkpoint.interval=0",
    )
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    command = [sys.executable, "-m", "bigtrain", "pretrain", str(tmp_path / "run.yaml"), "--nproc", "2"]
    launcher = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        while not (run / "metrics.jsonl").exists():
            assert launcher.poll() is None
            select.select([], [], [], 0.05)
        (stopped,) = (p for p in psutil.Process(launcher.pid).children() if p.environ().get("RANK") == "1")
        stopped.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        _, told = launcher.communicate(timeout=120)
        seconds = time.monotonic() - began
    finally:
        if launcher.poll() is None:
            launcher.kill()
    assert launcher.returncode == 1
    assert seconds < STEP_TIMEOUT + 30
    head, first, second = told.splitlines()[-3:]
    assert head.startswith("training.step_timeout: the run hangs")
    where = re.fullmatch(
        rf"rank 0 \(pid \d+\): step (\d+) has taken more than {STEP_TIMEOUT:g} seconds: in (.+)", first
    )
    assert where, first
    assert "bigtrain/" in where[2], "where in our own code"
    last_step = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    assert int(where[1]) - last_step in (0, 1), "its row may be written and the agreement on a stop still to come"
    assert second == f"rank 1 (pid {stopped.pid}): did not answer: it is stopped, by SIGSTOP or a debugger"
    assert not psutil.pid_exists(stopped.pid)
    log = (run / "logs/rank-00000.log").read_text()
    assert "in train" in log, "the whole stack"
    hang = json.loads((run / "events.jsonl").read_text().splitlines()[-1])
    assert (hang["event"], hang["during"], hang["step"]) == ("hang", f"step {where[1]}", int(where[1]) - 1)
