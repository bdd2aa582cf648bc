"""A rank that fails ends the whole run within half a minute, and its traceback is the last thing on the screen."""

import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bigtrain.launch.environment import World
from bigtrain.launch.local import run_workers

pytestmark = pytest.mark.distributed

FAILING = Path(__file__).with_name("failing.py")
NODE = """
import sys
from pathlib import Path
from bigtrain.launch.environment import World
from bigtrain.launch.local import run_workers
node, port, folder, *command = sys.argv[1:]
world = World(1, nnodes=2, node_rank=int(node), master_address="127.0.0.1", master_port=int(port))
sys.exit(run_workers(command, world, log_dir=Path(folder, "logs")))
"""
Fail = Callable[[str], tuple[int, list[str]]]


@pytest.fixture
def fail(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Fail:
    """Run a case of `failing.py` on two processes; gives the exit code and the lines of stderr."""

    def run(case: str) -> tuple[int, list[str]]:
        command = [sys.executable, str(FAILING), case, str(tmp_path)]
        exit_code = run_workers(command, World(2), log_dir=tmp_path / "logs")
        seconds = time.time() - float((tmp_path / "failed-at").read_text())
        assert seconds < 30, f"{case}: {seconds:.1f} s from the failure to the end; gloo alone would wait for 30 min"
        return exit_code, capfd.readouterr().err.splitlines()

    return run


@pytest.mark.parametrize(
    ("case", "rank", "function", "error"),
    [
        ("start", 1, "before_the_start", "ImportError: a library is broken on this node"),
        ("memory", 1, "out_of_memory", "MemoryError"),
        ("data", 1, "load", "FileNotFoundError: [Errno 2] No such file or directory: '"),
        ("build", 1, "build_gpt", "RuntimeError: "),
        ("step-zero-1", 1, "train_step", "IndexError: index out of range in self"),
        ("step-zero-3", 1, "train_step", "IndexError: index out of range in self"),
        ("save", 0, "save", "NotADirectoryError: [Errno 20] Not a directory: '"),
    ],
)
def test_the_rank_that_failed_has_the_last_word(fail: Fail, case: str, rank: int, function: str, error: str) -> None:
    """And not the one that lost it, though it may end first."""
    exit_code, lines = fail(case)
    assert exit_code == 1
    (begin,) = (number for number, line in enumerate(lines) if line.startswith(f"rank {rank} (pid "))
    assert lines[begin + 1] == "Traceback (most recent call last):"
    assert any(line.endswith(f", in {function}") for line in lines[begin:])
    assert lines[-1].startswith(error)
    assert not any(line.startswith("rank ") for line in lines[:begin]), "the other failed for want of this one"


def test_a_write_that_fails_beside_training_ends_all(fail: Fail, tmp_path: Path) -> None:
    """At the next step's end, with the traceback of the rank that met it; the checkpoint before stays, alone."""
    exit_code, lines = fail("background")
    fault = "FileNotFoundError: [Errno 2] No such file or directory: '/nowhere/.step-00000002.writing/__1_0.distcp'"
    assert exit_code == 1
    assert lines[-1] == fault
    assert any(line.endswith(", in write_boxes") for line in lines)
    assert next(line for line in lines if line.startswith("rank ")).startswith("rank 1 (pid ")
    assert fault in (tmp_path / "logs/rank-00001.log").read_text()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["latest", "step-00000001"]


def test_a_mistake_that_one_rank_alone_meets(fail: Fail) -> None:
    """In the middle of a run: one message and exit code 2, as at the start."""
    assert fail("mistake") == (2, ["error: shard-00003.arrow is damaged"])


def test_a_crash_in_c_on_rank_0(fail: Fail) -> None:
    """Its stack, which Python writes to the terminal at once, comes last all the same."""
    exit_code, lines = fail("crash")
    assert exit_code == 128 + 11
    (begin,) = (number for number, line in enumerate(lines) if line.startswith("rank 0 (pid "))
    assert lines[begin].endswith(") ended by signal 11 (SIGSEGV)")
    assert lines[begin + 1] == "Fatal Python error: Segmentation fault"
    assert any(line.endswith(" in crash") for line in lines[begin:])


def test_a_rank_that_is_killed(fail: Fail) -> None:
    """It can say nothing, and the other one's words of a lost connection do not stand in its place."""
    exit_code, lines = fail("killed")
    assert exit_code == 128 + 9
    assert lines[-1].startswith("rank 1 (pid ")
    assert ") ended by signal 9 (SIGKILL), sent from outside" in lines[-1]


def test_on_another_node(tmp_path: Path) -> None:
    """Its launcher does not know the cause, says so, and shows no traceback that would bury the one that counts."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, str(FAILING), "crash", str(tmp_path)]
    launchers = [
        subprocess.Popen(
            [sys.executable, "-c", NODE, str(node), str(port), str(tmp_path), *command],
            stderr=subprocess.PIPE,
            text=True,
        )
        for node in range(2)
    ]
    here, there = (launcher.communicate(timeout=120)[1].splitlines() for launcher in launchers)
    assert time.time() - float((tmp_path / "failed-at").read_text()) < 30
    assert [launcher.returncode for launcher in launchers] == [128 + 11, 1]
    assert any(line.endswith(" in crash") for line in here)
    lost, words = there
    assert lost.startswith("rank 1 (pid ")
    assert "lost its peers; no rank of this node failed before, so look at what the other nodes say" in lost
    assert lost.endswith(f"; its log is {tmp_path}/logs/rank-00001.log:")
    assert words.startswith("RuntimeError: ")
    assert "gloo" in words
    assert "Traceback" in (tmp_path / "logs/rank-00001.log").read_text()
