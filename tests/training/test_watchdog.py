"""The watchdog of one process, which hangs for real: its log, its event, its end."""

import json
import subprocess
import sys
from pathlib import Path

from bigtrain.training.watchdog import Watchdog

WORKER = """
import ctypes, sys, threading
from pathlib import Path
from bigtrain.training.watchdog import Watchdog

def in_python():
    threading.Event().wait()

def in_c_with_the_lock():
    ctypes.PyDLL(None).pause()

def fed_in_time():
    for step in range(10):
        watchdog.feed("step", step)
        threading.Event().wait(0.2)

def first_step():
    watchdog.feed("step 1", 0, long=True)
    threading.Event().wait(2)

def one_long_step():
    watchdog.feed("step 1", 0)
    threading.Event().wait(0.5)
    watchdog.feed("step 2", 1)
    threading.Event().wait(2)
    watchdog.feed("step 3", 2)
    threading.Event().wait()

with Watchdog(float(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), 2) as watchdog:
    watchdog.feed("step 7", 6)
    globals()[sys.argv[1]]()
threading.Event().wait(2)  # what is left of it would strike now
"""


def work(what: str, seconds: float, folder: Path, rank: int = 0) -> tuple[int, str, str]:
    """Exit code, stderr and the log of a worker."""
    command = [sys.executable, "-c", WORKER, what, str(seconds), str(folder), str(rank)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    log = folder / f"logs/rank-{rank:05d}.log"
    return done.returncode, done.stderr, log.read_text() if log.exists() else ""


def test_a_step_that_takes_too_long(tmp_path: Path) -> None:
    code, told, log = work("in_python", 0.5, tmp_path)
    assert code == 1
    begin, _, where = told.partition(": in ")
    assert begin == "rank 0: step 7 has taken more than 0.5 seconds"
    assert where.startswith("Condition.wait (")
    assert "threading.py:" in where
    assert told.removeprefix("rank 0: ") in log
    assert 'File "<string>", line 7 in in_python' in log, "the main thread's whole stack"
    assert "in _bark" in log, "and every other thread's"
    (event,) = (json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines())
    del event["time"]
    assert event == {"event": "hang", "step": 6, "world_size": 2, "during": "step 7", "seconds": 0.5}


def test_the_first_rank_alone_records_the_event(tmp_path: Path) -> None:
    code, told, _ = work("in_python", 0.5, tmp_path, rank=1)
    assert code == 1
    assert told.startswith("rank 1: step 7 has taken more than")
    assert not (tmp_path / "events.jsonl").exists()


def test_c_code_that_keeps_pythons_lock(tmp_path: Path) -> None:
    """No thread of Python's runs then."""
    code, _, log = work("in_c_with_the_lock", 0.5, tmp_path)
    assert code == 1
    assert "Timeout (0:00:06.5" in log
    assert "in in_c_with_the_lock" in log


def test_it_is_quiet_while_it_is_fed_and_when_it_is_over(tmp_path: Path) -> None:
    """Two seconds of steps that take a part of the limit each, and as long again after the end."""
    assert work("fed_in_time", 1.0, tmp_path) == (0, "", "")


def test_the_first_step_may_take_longer(tmp_path: Path) -> None:
    assert work("first_step", 0.5, tmp_path) == (0, "", "")


def test_what_long_steps_take_is_learned(tmp_path: Path) -> None:
    """Two seconds are within five times half a second; the next limit follows from them."""
    code, told, _ = work("one_long_step", 0.8, tmp_path)
    assert code == 1
    assert told.startswith("rank 0: step 3 has taken more than 10.")


def test_it_can_be_turned_off(tmp_path: Path) -> None:
    assert work("fed_in_time", 0.0, tmp_path) == (0, "", "")
    with Watchdog(0, tmp_path, 0, 1) as watchdog:
        watchdog.feed("step 1", 0)
    assert list(tmp_path.iterdir()) == []
