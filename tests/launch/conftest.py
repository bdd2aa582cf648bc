"""The fixture that starts launchers; what they and their workers are is in `launched`."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from launched import LAUNCHER, WORKER, Launcher


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., Launcher]]:
    """Start a launcher over workers that run the given lines after those of WORKER."""
    launched: list[Launcher] = []
    fifo = tmp_path / "tell"
    os.mkfifo(fifo)
    pipe = os.open(fifo, os.O_RDWR)

    def start(body: str, nproc: int = 2, grace: float = 30.0, env: dict[str, str] | None = None) -> Launcher:
        program, log_dir = tmp_path / "worker.py", tmp_path / "logs"
        program.write_text(WORKER + body)
        process = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, program, log_dir, str(nproc), str(grace)],
            env={**os.environ, **(env or {}), "TELL": str(fifo)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        launched.append(Launcher(process, pipe, log_dir))
        return launched[-1]

    yield start
    for launcher in launched:
        if launcher.process.poll() is None:
            launcher.process.send_signal(signal.SIGKILL)
        launcher.process.communicate()
    os.close(pipe)
