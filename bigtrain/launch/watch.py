"""A run's status on a terminal: once, or until its job ends."""

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from bigtrain.launch.status import Status, event_line, figures, follow, followers, line, statuses, worst

_SECONDS_BETWEEN_LINES = 10.0


def show(run: Path, console: Console) -> None:
    """Tell how a run stands, or each run of a sweep.

    Raises:
        LaunchError: No job of it is known, or Slurm does not answer.
    """
    found = statuses(run)
    console.print(_shown(run, found))
    if len(found) == 1 and found[0].run == run:
        for row in found[0].events:
            console.print(event_line(row), markup=False)
    for job, told in followers(run):
        state = "ended" if told is None else f"{told.state} ({told.reason})" if told.state == "PENDING" else told.state
        console.print(f"then job {job.id} {state}  bigtrain {job.command}", markup=False)


def watch(run: Path, console: Console) -> int:
    """Follow a run until its job has ended: a live line on a terminal, elsewhere a line every few seconds.

    Returns:
        The job's exit code: 0 done, 2 a user's mistake, 75 stopped, else a fault; of a sweep the worst.

    Raises:
        LaunchError: No job of it is known, or Slurm does not answer.
    """
    found: list[Status] = []
    if console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            for found in follow(run):
                live.update(_shown(run, found), refresh=True)
        return worst(found)
    states: list[str] = []
    said = 0.0
    for found in follow(run):
        now = [status.state for status in found]
        if now != states or time.monotonic() - said > _SECONDS_BETWEEN_LINES:
            states, said = now, time.monotonic()
            console.print(_shown(run, found))
    return worst(found)


def _shown(run: Path, found: Sequence[Status]) -> Text:
    """A line for a run; for a sweep one for each of its runs, in columns as wide as they must be."""
    if len(found) == 1 and found[0].run == run:
        return Text(line(found[0]))
    rows = [("run", "job", "state", "step", "")]
    for status in found:
        now = status.progress
        step = f"{now.step}/{now.steps if now.steps is not None else '?'}"
        rows.append((status.run.name, status.submitted.id, status.state, step, "  ".join(figures(status))))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return Text("\n".join(lines))
