"""`bigtrain logs`: what a run's job, or one of its ranks, has written."""

import itertools
import math
import time
from collections.abc import Iterator
from pathlib import Path

from bigtrain.errors import LaunchError
from bigtrain.launch import slurm
from bigtrain.launch.submitted import newest_job
from bigtrain.training.records import log_path

_CHUNK = 1 << 20
_LOOK_SECONDS = 0.5
_ASK_SECONDS = 5.0


def output_file(run: Path, rank: int | None) -> Path:
    """The output of the run's newest job, or a rank's log; it may not be written yet.

    Raises:
        LaunchError: It is not known, or `run` is the folder of a sweep.
    """
    if rank is not None:
        return log_path(run, rank)
    job = newest_job(run)
    if job.tasks:
        raise LaunchError(f"{run} is a sweep of {len(job.tasks)} runs; name one of them, such as {job.tasks[0]}")
    if job.output is not None:
        return Path(job.output)
    found = slurm.output_of(job.id)
    if found is None:
        raise LaunchError(
            f"Slurm does not know any more where job {job.id} has written its output: the job was not submitted with "
            f"`bigtrain submit`. The ranks' logs are in {run / 'logs'}: give --rank"
        )
    return found


def read(run: Path, rank: int | None, *, follow: bool) -> Iterator[bytes]:
    """What is in the output, in pieces; with `follow` also what will be, until the job has ended.

    Raises:
        LaunchError: There is nothing to read.
    """
    path = output_file(run, rank)
    ended = _ends(run) if follow else itertools.repeat(True)
    while not path.exists():
        if next(ended):
            raise LaunchError(_missing(run, rank, path))
        time.sleep(_LOOK_SECONDS)
    with path.open("rb") as file:
        while True:
            last = next(ended)  # before the last look at the file
            while piece := file.read(_CHUNK):
                yield piece
            if last:
                return
            time.sleep(_LOOK_SECONDS)


def _ends(run: Path) -> Iterator[bool]:
    """Whether the run's job has ended, at each look; Slurm is asked every few seconds only."""
    asked, ended = -math.inf, False
    while True:
        if time.monotonic() - asked > _ASK_SECONDS:
            asked, ended = time.monotonic(), _has_ended(run)
        yield ended


def _has_ended(run: Path) -> bool:
    return all(job.ended for job in slurm.jobs([newest_job(run).id]).values())


def _missing(run: Path, rank: int | None, path: Path) -> str:
    if rank is not None:
        logs = sorted(run.glob("logs/rank-*.log"))
        known = f"there are {len(logs)} logs, {logs[0].name} to {logs[-1].name}" if logs else "there is no log yet"
        return f"{path} is not there: {known}. Ranks that are not the first of their node keep theirs until one fails"
    job = newest_job(run)
    state = next((told.state for told in slurm.jobs([job.id]).values()), "not known to Slurm any more")
    return f"{path} is not there: job {job.id} is {state}"
