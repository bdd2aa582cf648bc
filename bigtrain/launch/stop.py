"""`bigtrain stop`: the run writes a checkpoint and ends, and is not put back into the queue."""

import time
from collections.abc import Callable
from pathlib import Path

from bigtrain.launch import slurm
from bigtrain.launch.status import tail
from bigtrain.launch.submitted import STOP, runs_of
from bigtrain.training.records import EVENTS

_AGAIN_SECONDS = 10.0
"""A signal that came while the processes were starting may not have been heard."""
_HEARD = ("preempt", "stop")


def stop(run: Path, *, wait: bool, say: Callable[[str], None], every: float = 2.0) -> None:
    """Have a run, or all runs of a sweep, save and end; one that waits in the queue is taken out of it.

    Args:
        run: Its folder, or a sweep's.
        wait: Until it has ended; else only until it has been told to.
        say: Takes each line of what is done.
        every: Seconds between two looks at the job.

    Raises:
        LaunchError: No job is known, or Slurm does not answer.
    """
    folders = {job.id: folder for folder, job in runs_of(run).items()}
    told: dict[str, float] = {}
    alive = _alive(folders)
    for job_id in set(folders) - set(alive):
        say(f"job {job_id} has ended already")
    for job_id in alive:
        (folders[job_id] / STOP).touch()  # whoever sees the run end does not continue it
    while alive and (wait or not set(alive) <= set(told)):
        for job in alive.values():
            if job.state == "PENDING":
                slurm.ask("scancel", "--state=PENDING", job.id)  # should it have started by now it is not killed
                if job.id not in told:
                    say(f"job {job.id} is taken out of the queue")
            elif not _has_steps(job.id) or _will_end(folders[job.id], told.get(job.id)):
                continue
            else:
                slurm.ask("scancel", "--signal=USR1", job.id)
                if job.id not in told:
                    say(f"job {job.id} is told to write a checkpoint and to end")
            told[job.id] = time.time()
        time.sleep(every)
        alive = _alive(folders)
    for job_id in set(folders) - set(alive):
        (folders[job_id] / STOP).unlink(missing_ok=True)
    if wait and told:
        say(f"{run} has ended; `bigtrain submit` with the same configuration goes on from its checkpoint")


def _will_end(run: Path, told_at: float | None) -> bool:
    """Whether the run has heard the signal of that time, or may not have had the time to."""
    if told_at is None:
        return False
    heard = any(row["event"] in _HEARD and row["time"] > told_at for row in tail(run / EVENTS))
    return heard or time.time() - told_at < _AGAIN_SECONDS


def _alive(folders: dict[str, Path]) -> dict[str, slurm.Job]:
    return {job.id: job for job in slurm.jobs(list(folders)).values() if not job.ended}


def _has_steps(job_id: str) -> bool:
    """Whether the run's launchers are started: the batch script itself does not hear the signal."""
    told = slurm.ask("squeue", "--steps", "--noheader", f"--jobs={job_id}", "--format=%i", allow_unknown=True)
    return any(step.rpartition(".")[2].isdigit() for step in told.split())
