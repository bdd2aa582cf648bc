"""Workers that hang, each in its own way: what the launcher says of each."""

from collections.abc import Callable
from pathlib import Path

from launched import Launcher, all_gone

WORKER = """
import ctypes
from pathlib import Path
from bigtrain.training.watchdog import Watchdog

signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # in a run it only asks for a stop at the step's end

def waits():
    signal.pause()

with Watchdog(1, Path(os.environ["RUN"]), rank, 3) as watchdog:
    watchdog.feed("step 7", 6)
    tell("ready")
    if rank == 0:
        waits()
    if rank == 1:
        ctypes.PyDLL(None).pause()  # with Python's lock
    os.kill(os.getpid(), signal.SIGSTOP)
"""


def test_each_rank_is_told_apart(launch: Callable[..., Launcher], tmp_path: Path) -> None:
    launcher = launch(WORKER, nproc=3, env={"RUN": str(tmp_path)}, grace=8.0)
    workers = launcher.ready(3)
    code, _, err = launcher.end()
    assert code == 1
    head, *lines = err.splitlines()
    assert head.startswith("training.step_timeout: the run hangs (the stacks of all threads are at the end of ")
    first, second, third = (line.partition("): ")[2] for line in lines)
    assert first.startswith("step 7 has taken more than 1 seconds: in waits (")
    assert second == "did not answer, its Python being locked by C code; its stack is in its log"
    assert third == "did not answer: it is stopped, by SIGSTOP or a debugger"
    assert "in waits" in (launcher.log_dir / "rank-00000.log").read_text()
    assert "in <module>" in (launcher.log_dir / "rank-00001.log").read_text()
    assert all_gone(workers)
