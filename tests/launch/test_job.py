"""What a job's batch step decides by itself; on a real Slurm: `tests/slurm`."""

from pathlib import Path

import pytest

from bigtrain.errors import LaunchError
from bigtrain.launch import slurm
from bigtrain.launch.job import _give_up_if_told_soon, is_batch_step


@pytest.mark.parametrize(
    ("env", "is_batch"),
    [
        ({"SLURM_JOB_ID": "17"}, True),
        ({"SLURM_JOB_ID": "17", "SLURM_STEP_ID": "4294967290"}, True),
        ({"SLURM_JOB_ID": "17", "SLURM_STEP_ID": "0"}, False),
        ({"SLURM_JOB_ID": "17", "RANK": "0"}, False),
        ({}, False),
    ],
)
def test_where_a_job_is_supervised(env: dict[str, str], is_batch: bool) -> None:
    """In the batch script, and in a shell of `salloc`, on whichever machine that opens; not in what `srun` starts."""
    assert is_batch_step(env) is is_batch


def test_a_job_that_is_told_to_end_at_once_again_and_again(tmp_path: Path) -> None:
    def told(used: str, left: str) -> None:
        job = slurm.Job("17", "RUNNING", "None", "n1", used, left, "N/A", "main", 0, "run")
        _give_up_if_told_soon(tmp_path / "counter", job)

    for used, left in [("0:20", "1:40"), ("0:30", "1:30"), ("1:00", "1:00"), ("0:20", "1:40"), ("0:20", "1:40")]:
        told(used, left)
    with pytest.raises(LaunchError, match=r"job 17 had had 25 seconds of its time limit of 120 .*--signal"):
        told("0:25", "1:35")
    told("0:20", "1:40")  # submitted again: counted anew
    for _ in range(5):  # somebody's wish
        told("0:20", "UNLIMITED")
        told("6:00", "23:54:00")
