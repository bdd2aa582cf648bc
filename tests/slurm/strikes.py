"""What can befall a job, done to real ones, and what it cost."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from slurm_cluster import PATIENCE, Cluster, wait_for

SCRIPTS = Path(__file__).parents[2] / "slurm"
CLOCKS = {"step_seconds", "data_seconds", "tokens_per_second", "memory_bytes"}
"""What differs between two runs that compute the same."""


def rows(file: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSON-lines file that may be growing."""
    text = file.read_text() if file.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


@dataclass
class Job:
    """A submitted run."""

    cluster: Cluster
    id: str
    run: Path
    out: Path

    @property
    def state(self) -> str:
        """Slurm's word for it; empty when it is forgotten."""
        command = ["squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={self.id}"]
        return self.cluster.ask(*command, check=False).strip()

    @property
    def standing(self) -> str:
        """All jobs and nodes, as Slurm tells them."""
        return self.cluster.ask("squeue", "--states=all") + self.cluster.ask("sinfo", "--Node", "--long")

    @property
    def told(self) -> str:
        """Its output so far."""
        return self.out.read_text() if self.out.exists() else ""

    @property
    def exit_code(self) -> int:
        """Of its batch script."""
        command = ["squeue", "--noheader", "--states=all", "--Format=exit_code", f"--jobs={self.id}"]
        return int(self.cluster.ask(*command)) // 256

    @property
    def nodes(self) -> list[str]:
        """Where it runs; the first has the batch step."""
        command = ["squeue", "--noheader", "--format=%N", f"--jobs={self.id}"]
        listed = self.cluster.ask(*command).strip()
        return self.cluster.ask("scontrol", "show", "hostnames", listed).split()

    @property
    def step(self) -> int:
        """The last step that it has logged."""
        return max((row["step"] for row in rows(self.run / "metrics.jsonl")), default=0)

    def events(self, name: str) -> list[dict[str, Any]]:
        return [row for row in rows(self.run / "events.jsonl") if row["event"] == name]

    @property
    def starts(self) -> list[dict[str, Any]]:
        """The events of its starts: from a checkpoint, or from nothing where none was complete yet."""
        return [row for row in rows(self.run / "events.jsonl") if row["event"] in ("start", "resume")]

    def reach(self, step: int) -> None:
        """Wait until a step is done."""
        wait_for(f"step {step} of {self.run.name}", lambda: self.step >= step, PATIENCE, every=0.05)

    def end(self) -> str:
        """Wait until the job is over; gives its state."""
        ended = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", ""}
        wait_for(f"the end of {self.run.name}", lambda: self.state in ended, PATIENCE, every=0.5)
        return self.state

    def pids(self, node: str) -> list[int]:
        """The workers on a node, in the order of their ranks."""
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            try:
                words = (path / "environ").read_text().split("\0")
            except (OSError, UnicodeDecodeError):
                continue
            variables = dict(word.split("=", 1) for word in words if "=" in word)
            is_ours = variables.get("SLURM_JOB_ID") == self.id and variables.get("SLURMD_NODENAME") == node
            if is_ours and "RANK" in variables:
                found[int(variables["RANK"])] = int(path.name)
        return [found[rank] for rank in sorted(found)]


class Runs:
    """Runs of one configuration on one cluster, in its partition `low`. May be used from several threads."""

    def __init__(self, cluster: Cluster, folder: Path, config: Path, python: str, script: str = "pretrain.sh") -> None:
        self.cluster, self.folder, self.config, self._python = cluster, folder, config, python
        self._script = script
        self._undisturbed: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        self._one_at_a_time = Lock()

    def submit(
        self,
        name: str,
        *options: str,
        overrides: tuple[str, ...] = (),
        nproc: int = 1,
        variables: dict[str, str] | None = None,
    ) -> Job:
        """Submit the script as a user does, on two nodes unless `options` say otherwise."""
        words = [str(self.config), f"training.output_dir={self.folder / name}", *overrides]
        variables = {**(variables or {}), "BIGTRAIN_NPROC": str(nproc)}
        return self._sbatch(name, ["--nodes=2", *options], self._script, words, variables)

    def prepare(self, name: str, *options: str, words: Sequence[str], python: Path) -> Job:
        """Submit data preparation."""
        words = [*words, "--output", str(self.folder / name)]
        return self._sbatch(name, options, "prepare.sh", words, {"BIGTRAIN_PYTHON": str(python)})

    def judge(self, job: Job, examples: Path, *options: str, words: Sequence[str], nproc: int) -> Job:
        """Submit the evaluation of what a job is fine-tuning, for when it is done."""
        options = (f"--dependency=afterok:{job.id}", *options)
        words = [str(job.run), str(examples), *words]
        return self._sbatch(f"{job.run.name}-judged", options, "evaluate.sh", words, {"BIGTRAIN_NPROC": str(nproc)})

    def undisturbed(self, *overrides: str, nproc: int = 2) -> list[dict[str, Any]]:
        """The curve of the same run on this machine alone, left in peace."""
        key = (*overrides, str(nproc))
        with self._one_at_a_time:
            if key not in self._undisturbed:
                run = self.folder / f"undisturbed-{len(self._undisturbed)}"
                env = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
                env |= {"BIGTRAIN_PYTHON": self._python, "BIGTRAIN_NPROC": str(nproc)}
                command = ["bash", str(SCRIPTS / self._script), str(self.config), f"training.output_dir={run}"]
                subprocess.run([*command, *overrides], env=env, check=True, stdout=subprocess.DEVNULL)
                self._undisturbed[key] = curve(run)
        return self._undisturbed[key]

    def _sbatch(
        self, name: str, options: Sequence[str], script: str, words: Sequence[str], variables: dict[str, str]
    ) -> Job:
        out = self.folder / f"{name}.out"
        command = ["sbatch", "--parsable", "--partition=low", f"--output={out}", *options, str(SCRIPTS / script)]
        told = self.cluster.ask(*command, *words, **{"BIGTRAIN_PYTHON": self._python, **variables})
        return Job(self.cluster, told.strip(), self.folder / name, out)


def curve(run: Path) -> list[dict[str, Any]]:
    """What a run has computed, step by step."""
    return [{k: v for k, v in row.items() if k not in CLOCKS} for row in rows(run / "metrics.jsonl")]


@dataclass(frozen=True)
class Recovery:
    """What a stroke cost: seconds since it was done, but for `loading`."""

    strike: str
    lost_steps: int
    """Steps that were done again."""
    noticed: float
    """Until the run knew: it recorded that it stops or has failed, or Slurm took the job from its nodes."""
    restarted: float
    """Until the launchers were started again, here or by way of the queue."""
    loaded: float
    """Until the processes had loaded the checkpoint."""
    loading: float
    """Of that, reading the checkpoint."""
    stepped: float
    """Until the first step beyond all that were done before."""


Stroke = Callable[[Job], str | None]
"""Gives the node that it has taken down and that is to be brought back, if any. No other may be: by then it may be
another run's, which has lost it in its turn, and would go on in place before Slurm notices."""


def strike(job: Job, name: str, stroke: Stroke) -> Recovery:
    """Do it, and measure until the run is further than it was. Then bring back the node that it took down."""
    started = len(job.starts)
    step, began, said = job.step, time.time(), len(job.told)
    lost = stroke(job)
    seen: list[float] = []
    restarted: list[float] = []

    def noticed() -> bool:
        ends = [row["time"] for what in ("fault", "preempt") for row in job.events(what) if row["time"] > began]
        if ends or job.state not in ("RUNNING", "SIGNALING"):
            seen.append(min(ends, default=time.time()))
        return bool(seen)

    def goes_on() -> bool:
        if not restarted and re.search(r"== (job \d+, start|starting again)", job.told[said:]):
            restarted.append(time.time())
        return len(job.starts) > started

    try:
        wait_for(f"{name}: somebody notices", noticed, PATIENCE)
        wait_for(f"{name}: the run goes on", goes_on, PATIENCE)
    except TimeoutError as error:
        raise TimeoutError(f"{error}: {job.standing}\n{job.told[-3000:]}") from None
    back = job.starts[started]
    job.reach(step + 1)
    cost = Recovery(
        strike=name,
        lost_steps=max(0, step - back["step"]),
        noticed=seen[0] - began,
        restarted=restarted[0] - began,
        loaded=back["time"] - began,
        loading=back.get("loaded_seconds", 0.0),
        stepped=time.time() - began,
    )
    if lost:
        job.cluster.repair(lost)
    return cost


def warning(job: Job) -> None:
    """What Slurm sends before a time limit."""
    job.cluster.ask("scancel", "--signal=USR1", job.id)


def requeue(job: Job) -> None:
    job.cluster.ask("scontrol", "requeue", job.id)


def kill_node(job: Job) -> str:
    """The one without the batch step."""
    job.cluster.kill(node := job.nodes[1])
    return node


def kill_first_node(job: Job) -> str:
    job.cluster.kill(node := job.nodes[0])
    return node


def cut_node(job: Job) -> str:
    job.cluster.cut(node := job.nodes[1])
    return node


def kill_rank(job: Job) -> None:
    os.kill(job.pids(job.nodes[1])[0], signal.SIGKILL)


def stop_rank(job: Job) -> None:
    os.kill(job.pids(job.nodes[1])[0], signal.SIGSTOP)


def preempt(job: Job) -> None:
    """Its nodes are wanted by a job of more weight, for a moment."""
    nodes = ",".join(job.nodes)
    words = ["--partition=high", "--nodes=2", f"--nodelist={nodes}", "--exclusive", "--output=/dev/null", "--wrap=true"]
    job.cluster.ask("sbatch", "--parsable", *words)
