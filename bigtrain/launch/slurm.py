"""What Slurm says and is told, through its own commands."""

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from bigtrain.errors import LaunchError
from bigtrain.training import faults, records

ENDED = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT",
}  # fmt: skip
"""States that a job does not leave by itself."""
_SECONDS = 60
_ANSWER_SECONDS = 20
_FIELDS = (
    "JobArrayID",
    "State",
    "Reason",
    "NodeList",
    "TimeUsed",
    "TimeLeft",
    "StartTime",
    "Partition",
    "exit_code",
    "Name",
)


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
    exit_code: int
    """Of its batch script, 128 + n after signal n; 0 as long as there is none."""
    name: str

    @property
    def ended(self) -> bool:
        """Whether it will not run again."""
        return self.state in ENDED


def has_slurm() -> bool:
    """Whether there are Slurm's commands here."""
    return shutil.which("sbatch") is not None


def jobs(ids: Sequence[str]) -> dict[str, Job]:
    """Those of the jobs that Slurm still knows: it forgets one minutes after its end. An array is told as its tasks.

    Raises:
        LaunchError: Slurm does not answer.
    """
    form = ",".join(f"{name}:|" for name in _FIELDS)
    told = ask(
        "squeue",
        "--noheader",
        "--array",
        "--states=all",
        f"--Format={form}",
        f"--jobs={','.join(ids)}",
        allow_unknown=True,
    )
    found = [_job(line) for line in told.splitlines() if line]
    return {job.id: job for job in found}


def output_of(job_id: str) -> Path | None:
    """The file that a job's output goes to; None: Slurm does not know the job any more.

    Raises:
        LaunchError: Slurm does not answer.
    """
    told = ask("scontrol", "--oneliner", "show", "job", job_id, allow_unknown=True)
    found = re.search(r" StdOut=(.*?)(?: [A-Z]\w*=|\s*$)", told)
    return Path(found[1]) if found else None


def step(nodes: Sequence[str], *options: str) -> list[str]:
    """The words of `srun` that start one task on each of these nodes of the job.

    `--overlap`: a step that runs already, or that has lost a node and holds the others until Slurm has given that one
    up, is not waited for. `--kill-on-bad-exit=0`: a task that fails leaves the others the time to notice.
    """
    where = [f"--nodes={len(nodes)}", f"--nodelist={','.join(nodes)}", f"--ntasks={len(nodes)}"]
    return ["srun", *where, "--ntasks-per-node=1", "--overlap", "--kill-on-bad-exit=0", *options]


def answering(nodes: Sequence[str]) -> list[str]:
    """Those of this job's nodes on which something can be started: that one is lost Slurm learns minutes later."""
    with ThreadPoolExecutor(32) as pool:
        return [node for node, answers in zip(nodes, pool.map(_answers, nodes), strict=True) if answers]


def clean(env: Mapping[str, str]) -> dict[str, str]:
    """The environment without what belongs to the job or the rank that this process is in.

    `sbatch` hands its environment on, and a job that is submitted from within another one would find that one's
    SLURM_STEP_ID or SLURM_RESTART_COUNT.
    """
    if "SLURM_JOB_ID" not in env:
        return dict(env)
    ranks = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", faults.FOLDER, records.LOG}
    return {
        name: value
        for name, value in env.items()
        if name not in ranks and (not name.startswith("SLURM_") or name in ("SLURM_CONF", "SLURM_CLUSTERS"))
    }


def ask(*command: str, allow_unknown: bool = False, env: Mapping[str, str] | None = None) -> str:
    """What a command of Slurm's prints.

    Args:
        command: Its name and arguments.
        allow_unknown: An unknown job is no error, but nothing.
        env: The environment; None: this process's.

    Raises:
        LaunchError: It is not there, fails, or does not answer within a minute.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SECONDS, env=env)
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


def _job(line: str) -> Job:
    job_id, state, reason, nodes, used, left, starts, partition, status, name = (
        field.strip() for field in line.split("|", len(_FIELDS) - 1)
    )
    code, number = divmod(int(status), 256)  # as wait() gives it
    code = 128 + number if number else code
    name = name.removesuffix("|").rstrip()  # which may hold the separator itself
    return Job(job_id, state, reason, nodes, used, left, starts, partition, code, name)


def _answers(node: str) -> bool:
    command = [*step([node], "--gres=none"), "true"]
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=_ANSWER_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0
