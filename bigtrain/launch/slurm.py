"""What Slurm says and is told, through its own commands."""

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from bigtrain.errors import LaunchError

ENDED = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT",
}  # fmt: skip
"""States that a job does not leave by itself."""
_SECONDS = 60
_FIELDS = ("JobID", "State", "Reason", "NodeList", "TimeUsed", "TimeLeft", "StartTime", "Partition", "Name")


@dataclass(frozen=True)
class Job:
    """A job, or a task of an array, as `squeue` tells it."""

    id: str
    """As one names it: `17`, `17_3`."""
    state: str
    """Slurm's word: PENDING, RUNNING, COMPLETING, and those of `ENDED`."""
    reason: str
    """Why it waits, or ended; "None": it does not wait."""
    nodes: str
    """Host list; empty: none yet."""
    used: str
    left: str
    starts: str
    """When it began, or Slurm expects it to; "N/A": not known."""
    partition: str
    name: str


def has_slurm() -> bool:
    """Whether there are Slurm's commands here."""
    return shutil.which("sbatch") is not None


def jobs(ids: Sequence[str]) -> dict[str, Job]:
    """Those of the jobs that Slurm still knows: it forgets one minutes after its end. An array is told as its tasks.

    Raises:
        LaunchError: Slurm does not answer.
    """
    form = ",".join(f"{name}:|" for name in ("JobArrayID", *_FIELDS[1:]))
    told = ask(
        "squeue",
        "--noheader",
        "--array",
        "--states=all",
        f"--Format={form}",
        f"--jobs={','.join(ids)}",
        allow_unknown=True,
    )
    rows = (line.split("|")[: len(_FIELDS)] for line in told.splitlines() if line)
    return {row[0].strip(): Job(*(field.strip() for field in row)) for row in rows}


def ask(*command: str, allow_unknown: bool = False) -> str:
    """What a command of Slurm's prints.

    Args:
        command: Its name and arguments.
        allow_unknown: An unknown job is no error, but nothing.

    Raises:
        LaunchError: It is not there, fails, or does not answer within a minute.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SECONDS)
    except FileNotFoundError:
        raise LaunchError(f"there is no Slurm here: `{command[0]}` is not in PATH") from None
    except subprocess.TimeoutExpired:
        raise LaunchError(
            f"`{command[0]}` has not answered for {_SECONDS} seconds: is Slurm's controller up?"
        ) from None
    if done.returncode:
        said = done.stderr.strip() or done.stdout.strip()
        if allow_unknown and "Invalid job id" in said:
            return ""
        raise LaunchError(f"`{' '.join(command[:2])}` failed: {said}")
    return done.stdout
