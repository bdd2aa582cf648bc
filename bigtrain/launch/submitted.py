"""Which Slurm jobs a run has had: those that `bigtrain submit` wrote down, and those that its events name."""

import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from bigtrain.errors import LaunchError
from bigtrain.launch import slurm
from bigtrain.training import records

FOLDER = "slurm"
"""In the run's folder: scripts, configurations as submitted, the jobs' output, and `jobs.jsonl`."""
JOURNAL = "jobs.jsonl"
STOP = "stop"
"""A file in the run's folder: when the job ends it is not to be continued."""


@dataclass(frozen=True)
class Submitted:
    """A job, as it was submitted. An array is in the journal of the sweep's folder, its tasks each in their own."""

    id: str
    """As Slurm names it: `17`; of an array `17`, of its tasks `17_3`."""
    time: float
    """When, in seconds since 1970; of a job that only its events name, when it started."""
    script: str | None = None
    config: str | None = None
    """The configuration as submitted; an array has none."""
    output: str | None = None
    """The file that its output goes to; None: Slurm may tell."""
    command: str | None = None
    """What it does, where it is not the run itself but follows it: `report RUN`."""
    tasks: tuple[str, ...] = ()
    """The folders of an array's runs, in the order of its tasks."""
    chain: bool = False
    """Whether another job follows it at its time limit."""


def record(run: Path, job: Submitted) -> None:
    """Add a job to a run's journal."""
    folder = run / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    records.append(folder / JOURNAL, asdict(job))


def submit_again(run: Path, script: Path, after: str) -> str:
    """Submit the script of a run's job once more, to start when the job `after` has ended; gives the new job's id.

    Raises:
        LaunchError: Slurm refuses.
    """
    command = ("sbatch", "--parsable", f"--dependency=afterany:{after}", str(script))
    job_id = slurm.ask(*command, env=slurm.clean(os.environ)).strip().partition(";")[0]
    same = next((job for job in reversed(list(_journal(run))) if job.id == after), Submitted(after, 0.0))
    output = str(run / FOLDER / f"{job_id}.out")
    record(run, replace(same, id=job_id, time=time.time(), script=str(script), output=output, chain=True))
    return job_id


def jobs_of(run: Path) -> list[Submitted]:
    """The jobs of a run, the newest last; those that follow it are not among them."""
    found = [*_journal(run), *_named_by_events(run)]
    return sorted((job for job in found if job.command is None), key=lambda job: job.time)


def followers_of(run: Path) -> list[Submitted]:
    """The jobs that were submitted with the newest one, to follow it."""
    newest = _newest_time(run)
    return [job for job in _journal(run) if job.command is not None and job.time >= newest]


def newest_job(run: Path) -> Submitted:
    """The job that runs or has run a run, or a sweep's array.

    Raises:
        LaunchError: None is known.
    """
    found = jobs_of(run)
    if not found:
        what = "has had no Slurm job that is known here" if run.is_dir() else "is no folder"
        raise LaunchError(f"{run} {what}; a run's folder is its training.output_dir")
    return found[-1]


def runs_of(run: Path) -> dict[Path, Submitted]:
    """The run itself and its newest job; of a sweep's folder each of its runs.

    Raises:
        LaunchError: No job is known.
    """
    newest = newest_job(run)
    folders = [Path(task) for task in newest.tasks] or [run]
    return {folder: newest_job(folder) for folder in folders}


def _newest_time(run: Path) -> float:
    return max((job.time for job in _journal(run) if job.command is None), default=0.0)


def _journal(run: Path) -> Iterator[Submitted]:
    for row in records.read_rows(run / FOLDER / JOURNAL):
        yield Submitted(**{**row, "tasks": tuple(row["tasks"])})


def _named_by_events(run: Path) -> Iterator[Submitted]:
    """Jobs that were submitted by hand, or followed another at its time limit."""
    known = {job.id for job in _journal(run)}
    for row in records.read_rows(run / records.EVENTS):
        if (job_id := row.get("slurm_job_id")) is not None and job_id not in known:
            known.add(job_id)
            yield Submitted(str(job_id), row["time"])
