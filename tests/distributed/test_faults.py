"""A rank that fails in the middle of a step ends the whole run with its own traceback, and never hangs it."""

import sys
import time
from pathlib import Path

import pytest

from bigtrain.launch.environment import World
from bigtrain.launch.local import run_workers

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize("zero_stage", [1, 3])
def test_an_exception_on_one_rank_ends_all(zero_stage: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    script = Path(__file__).with_name("fail_in_a_step.py")
    began = time.monotonic()
    exit_code = run_workers([sys.executable, str(script), str(zero_stage)], World(2), log_dir=tmp_path)
    assert exit_code != 0
    assert time.monotonic() - began < 300, "gloo alone would wait for half an hour"
    assert "IndexError" in (tmp_path / "rank-00001.log").read_text()
    assert "rank 1" in capfd.readouterr().err
