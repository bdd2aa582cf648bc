"""A rank that fails ends the whole run with its own traceback, and never hangs it."""

import sys
import time
from pathlib import Path

import pytest

from bigtrain.launch.environment import World
from bigtrain.launch.local import run_workers

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize("zero_stage", [1, 3])
def test_an_exception_on_one_rank_ends_all(zero_stage: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    script = Path(__file__).with_name("failing.py")
    began = time.monotonic()
    exit_code = run_workers([sys.executable, str(script), "step", str(zero_stage)], World(2), log_dir=tmp_path)
    assert exit_code != 0
    assert time.monotonic() - began < 300, "gloo alone would wait for half an hour"
    assert "IndexError" in (tmp_path / "rank-00001.log").read_text()
    assert "rank 1" in capfd.readouterr().err


def test_a_save_that_fails_on_the_first_rank_ends_all(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    script = Path(__file__).with_name("failing.py")
    no_folder = tmp_path / "checkpoints"
    no_folder.write_text("")
    began = time.monotonic()
    assert run_workers([sys.executable, str(script), "save", str(no_folder)], World(2), log_dir=tmp_path) != 0
    assert time.monotonic() - began < 300
    assert f"NotADirectoryError: [Errno 20] Not a directory: '{no_folder}/" in capfd.readouterr().err


def test_a_write_that_fails_beside_training_ends_all(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """At the next step's end, with the traceback of the rank that met it; the checkpoint before stays, alone."""
    script, folder = Path(__file__).with_name("failing.py"), tmp_path / "checkpoints"
    began = time.monotonic()
    assert run_workers([sys.executable, str(script), "background", str(folder)], World(2), log_dir=tmp_path) == 1
    assert time.monotonic() - began < 300
    fault = "FileNotFoundError: [Errno 2] No such file or directory: '/nowhere/.step-00000002.writing/__1_0.distcp'"
    told = capfd.readouterr().err
    assert fault in told
    assert "write_boxes" in told
    assert "rank 1 failed" in told, "rank 0 says whose fault it was"
    assert fault in (tmp_path / "rank-00001.log").read_text()
    assert sorted(path.name for path in folder.iterdir()) == ["latest", "step-00000001"]
