"""How a run stands: what Slurm says of its job, and what the run has written itself."""

import json
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigtrain.config import load_config
from bigtrain.errors import EXIT_REQUEUE, ConfigError
from bigtrain.launch import slurm
from bigtrain.launch.submitted import Submitted, followers_of, runs_of
from bigtrain.training.records import EVENTS, METRICS

_TAIL_BYTES = 65_536
_RECENT_STEPS = 20
_SETTLING_SECONDS = 5.0


@dataclass(frozen=True)
class Progress:
    """What the last rows of `metrics.jsonl` say."""

    step: int = 0
    steps: int | None = None
    """Of the whole run; None: its configuration is not there to be read."""
    loss: float | None = None
    tokens_per_second: float | None = None
    seconds_left: float | None = None
    """To the last step, at the pace of the last ones."""


@dataclass(frozen=True)
class Status:
    """A run, now."""

    run: Path
    submitted: Submitted
    job: slurm.Job | None
    """None: Slurm has forgotten it, minutes after its end."""
    progress: Progress
    events: list[dict[str, Any]]
    """The newest of `events.jsonl`, the last one last."""

    @property
    def ended(self) -> bool:
        """Whether its job will not run again."""
        return self.job is None or self.job.ended

    @property
    def exit_code(self) -> int:
        """Of the job, once it has ended: 0 done, 2 a user's mistake, 75 stopped, else a fault."""
        if self.job is not None and self.job.state == "COMPLETED":
            return 0
        if self.job is not None and self.job.state == "FAILED":
            return self.job.exit_code or 1
        last = self.events[-1]["event"] if self.events else None
        return {"stop": 0, "preempt": EXIT_REQUEUE}.get(last or "", 1)

    @property
    def state(self) -> str:
        """In words: Slurm's, and where a job waits why and until when."""
        if self.job is None:
            return {0: "done", EXIT_REQUEUE: "stopped"}.get(self.exit_code, "ended")
        if self.job.state == "PENDING":
            expected = f", expected {self.job.starts}" if self.job.starts not in ("N/A", "") else ""
            return f"PENDING ({self.job.reason}{expected})"
        if self.job.state == "FAILED":
            return "stopped" if self.exit_code == EXIT_REQUEUE else f"FAILED (exit code {self.exit_code})"
        return self.job.state


def statuses(run: Path) -> list[Status]:
    """The run's, or of a sweep's folder each of its runs', asking Slurm once.

    Raises:
        LaunchError: No job of it is known, or Slurm does not answer.
    """
    jobs = runs_of(run)
    told = slurm.jobs([job.id for job in jobs.values()])
    return [
        Status(folder, job, told.get(job.id), progress(folder, job), tail(folder / EVENTS)[-3:])
        for folder, job in jobs.items()
    ]


def followers(run: Path) -> list[tuple[Submitted, slurm.Job | None]]:
    """The jobs that were submitted to follow the run's newest, and what Slurm says of them."""
    found = followers_of(run)
    told = slurm.jobs([job.id for job in found]) if found else {}
    return [(job, told.get(job.id)) for job in found]


def progress(run: Path, job: Submitted) -> Progress:
    """How far a run has come."""
    rows = [row for row in tail(run / METRICS) if row.get("step_seconds") is not None]
    steps = _steps(run, job)
    if not rows:
        return Progress(steps=steps)
    last, recent = rows[-1], rows[-_RECENT_STEPS:]
    pace = statistics.median(row["step_seconds"] for row in recent)
    left = None if steps is None else max(0, steps - last["step"]) * pace
    return Progress(last["step"], steps, last.get("loss"), last.get("tokens_per_second"), left)


def follow(run: Path, every: float = 5.0) -> Iterator[list[Status]]:
    """The status again and again, until every job has ended; the last one is told too.

    A job that a node's failure or a preemption has ended is looked at twice: Slurm puts it back into the queue a
    moment later.

    Args:
        run: Its folder, or a sweep's.
        every: Seconds between two looks.
    """
    ended_at: float | None = None
    while True:
        now = statuses(run)
        yield now
        if all(status.ended for status in now):
            ended_at = ended_at or time.monotonic()
            certain = all(status.job is None or status.job.state in ("COMPLETED", "CANCELLED") for status in now)
            if certain or time.monotonic() - ended_at > _SETTLING_SECONDS:
                return
        else:
            ended_at = None
        time.sleep(every)


def line(status: Status) -> str:
    """One line: the job, where it waits or runs, and how the run goes."""
    job, now = status.job, status.progress
    parts = [f"job {status.submitted.id} {status.state}"]
    if job is not None and job.state == "RUNNING":
        parts[0] += f" on {job.nodes}"
        parts.append(f"{job.used} used, {job.left} left")
    parts.append(f"step {now.step}/{now.steps if now.steps is not None else '?'}")
    parts += figures(status)
    return "  ".join(parts)


def figures(status: Status) -> list[str]:
    """The loss; and of a run that is going its speed and the time to its end."""
    now = status.progress
    found = [] if now.loss is None else [f"loss {now.loss:.4f}"]
    if status.job is not None and status.job.state == "RUNNING" and now.tokens_per_second is not None:
        found.append(f"{now.tokens_per_second:,.0f} tokens/s")
        if now.seconds_left is not None:
            found.append(f"{clock(now.seconds_left)} to the end")
    return found


def event_line(row: dict[str, Any]) -> str:
    """An event with its time."""
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row["time"]))
    said = [f"{key} {row[key]}" for key in ("signal", "exit_code", "slurm_job_id") if row.get(key) is not None]
    details = f" ({', '.join(said)})" if said else ""
    return f"{when}  {row['event']} at step {row['step']}{details}"


def clock(seconds: float) -> str:
    """`3:07:45`; with days `2-03:07:45`, as Slurm writes it."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days}-{hours:02d}:{minutes:02d}:{rest:02d}" if days else f"{hours}:{minutes:02d}:{rest:02d}"


def worst(found: Sequence[Status]) -> int:
    """The exit code that stands for all: a fault before a stop, a stop before success."""
    codes = [status.exit_code for status in found]
    faults = [code for code in codes if code not in (0, EXIT_REQUEUE)]
    return faults[0] if faults else max(codes)


def _steps(run: Path, job: Submitted) -> int | None:
    """Of the configuration as submitted, else of the one that the run has written down."""
    for path in (job.config, run / "config.yaml"):
        if path is not None and Path(path).is_file():
            try:
                return load_config(path).training.steps
            except ConfigError:  # of another version of BigTrain
                return None
    return None


def tail(path: Path) -> list[dict[str, Any]]:
    """The last rows of a JSON-lines file, which may be long and still be written to."""
    if not path.is_file():
        return []
    with path.open("rb") as file:
        start = max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES)
        file.seek(start)
        lines = file.read().split(b"\n")[:-1]  # what is after the last line's end is not whole
    return [json.loads(text) for text in lines[1 if start else 0 :]]
