"""Kill a run at random moments, start it again each time, and compare its curve with that of a run left alone.

    python tools/kill_at_random.py CONFIG FOLDER [key=value ...] --nproc 2 --kills 20 --seed 1

The run is started as a user starts it. Each time SIGKILL goes to one of the ranks or to the launcher, at a moment of
one of three kinds: a random time into the start; a random time after a random step; a random time after a save has
begun. Then it is started again, until all kills are done and the last step too. FOLDER/undisturbed and FOLDER/killed
are the two runs, FOLDER/kills.json holds what was done to the latter. Prints a table; ends with 1 where the curves
differ, or a start did not begin at the newest complete checkpoint.
"""

import argparse
import itertools
import json
import os
import random
import select
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bigtrain.config import load_config

CURVE = ("step", "tokens", "loss", "grad_norm", "learning_rate", "validation_loss", "validation_bits_per_byte")


@dataclass
class Kill:
    """One kill, and what came of it."""

    moment: str
    """`start`, `step` or `save`."""
    victim: str
    """`rank 0`, ..., or `launcher`."""
    last_step: int = 0
    """The last in the records when all processes were gone."""
    checkpoint: int = 0
    """Step of the newest complete checkpoint then; 0: none."""
    half_written: bool = False
    """Whether the folder of an incomplete checkpoint was left."""
    end_seconds: float = 0.0
    """From the kill until all processes were gone."""
    resumed_at: int | None = None
    """Step at which the next start went on; None: that start was killed before."""
    recovery_seconds: float | None = None
    """From the kill until the next start's first step was done; None: that start was killed before."""


class Run:
    """A run's folder, looked at from outside, and its processes."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self.folder = folder
        self._command = [*command, f"training.output_dir={folder}"]
        self._output = folder.parent / f"{folder.name}.out"

    def start(self) -> "subprocess.Popen[bytes]":
        with self._output.open("ab") as output:
            return subprocess.Popen(self._command, stdout=output, stderr=output, start_new_session=True)

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The whole lines of a record."""
        path = self.folder / name
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def last_step(self) -> int:
        return max((row["step"] for row in self.rows("metrics.jsonl")), default=0)

    def begun_at(self) -> list[int]:
        """The steps at which the starts began."""
        return [row["step"] for row in self.rows("events.jsonl") if row["event"] in ("start", "resume")]

    def complete(self) -> int:
        """Step of the newest complete checkpoint; 0: none."""
        markers = (self.folder / "checkpoints").glob("step-*/complete.json")
        return max((int(marker.parent.name.removeprefix("step-")) for marker in markers), default=0)

    def half_written(self) -> set[str]:
        return {path.name for path in (self.folder / "checkpoints").glob(".step-*.writing")}


def workers(launcher: int) -> dict[int, int]:
    """Process ids of a launcher's workers, by rank."""
    found = {}
    for pid in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        rank = next((value for value in variables if value.startswith(b"RANK=")), None)
        if rank is not None:
            found[int(rank.removeprefix(b"RANK="))] = int(pid)
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def ended_within(process: "subprocess.Popen[bytes]", seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def wait_until(reached: Callable[[], bool], process: "subprocess.Popen[bytes] | None" = None) -> bool:
    """Whether that came before the process ended."""
    while not reached():
        if process is not None and process.poll() is not None:
            return reached()
        select.select([], [], [], 0.002)
    return True


class Killer:
    """Decides by a seeded generator when and whom to kill, and does it."""

    def __init__(self, run: Run, undisturbed: "Undisturbed", seed: int, nproc: int, interval: int) -> None:
        self._run, self._undisturbed, self._interval = run, undisturbed, interval
        self._victims = [*(f"rank {rank}" for rank in range(nproc)), "launcher"]
        self._random = random.Random(seed)

    def plan(self) -> Kill:
        moment = self._random.choices(("start", "step", "save"), weights=(1, 5, 4))[0]
        return Kill(moment, self._random.choice(self._victims))

    def wait(self, moment: str, launcher: "subprocess.Popen[bytes]") -> bool:
        """Until the moment has come, or False when the run ends. A kill at the start comes before its first step."""
        choose, run, saves = self._random, self._run, set[str]()
        first, starts = run.last_step(), len(run.begun_at())
        count, save = choose.randint(0, 2 * self._interval), choose.randint(1, 2)

        def writing() -> bool:
            saves.update(run.half_written())
            return len(saves) >= save

        come: Callable[[], bool]
        if moment == "start":
            latest = time.monotonic() + choose.uniform(0, self._undisturbed.start_seconds)
            come = lambda: time.monotonic() > latest or len(run.begun_at()) > starts  # noqa: E731
            longest = 0.0
        elif moment == "step":
            come, longest = lambda: run.last_step() >= first + count, 2 * self._undisturbed.step_seconds
        else:
            come, longest = writing, self._undisturbed.save_seconds
        if not wait_until(come, launcher):
            return False
        return not ended_within(launcher, choose.uniform(0, longest))

    def strike(self, kill: Kill, launcher: "subprocess.Popen[bytes]") -> float:
        """Gives the time of the kill, when all processes are gone."""
        ranks = workers(launcher.pid)
        victim = ranks.get(int(kill.victim[5:])) if kill.victim.startswith("rank") else None
        kill.victim = kill.victim if victim else "launcher"  # which may have no workers yet
        struck = time.monotonic()
        os.kill(victim, signal.SIGKILL) if victim else os.killpg(launcher.pid, signal.SIGKILL)
        launcher.wait()
        wait_until(lambda: not any(alive(pid) for pid in ranks.values()))
        kill.end_seconds = round(time.monotonic() - struck, 3)
        kill.last_step, kill.checkpoint = self._run.last_step(), self._run.complete()
        kill.half_written = bool(self._run.half_written())
        return struck


@dataclass
class Undisturbed:
    """How long things take when nothing is killed: the random times are drawn from it."""

    start_seconds: float
    step_seconds: float
    save_seconds: float


def run_undisturbed(run: Run) -> Undisturbed:
    began = time.monotonic()
    process = run.start()
    wait_until(lambda: run.last_step() > 0, process)
    start_seconds = time.monotonic() - began
    if code := process.wait():
        raise SystemExit(f"the run that was left alone ended with {code}: see {run.folder}.out")
    saves = [row for row in run.rows("events.jsonl") if row["event"] == "checkpoint"]
    steps = [row["step_seconds"] for row in run.rows("metrics.jsonl") if "step_seconds" in row]
    save_seconds = statistics.median(sum(v for k, v in row.items() if k.endswith("seconds")) for row in saves)
    return Undisturbed(start_seconds, statistics.median(steps), save_seconds)


def run_killed(run: Run, killer: Killer, count: int) -> list[Kill]:
    """Start, kill, start again; the last start goes on to the end."""
    kills: list[Kill] = []
    struck = 0.0
    for number in range(count + 1):
        kill = killer.plan() if number < count else Kill("never", "")
        starts = len(run.begun_at())
        launcher = run.start()
        try:
            alive = kill.moment == "start" or wait_until(lambda: len(run.begun_at()) > starts, launcher)  # noqa: B023
            if alive and kill.moment != "start":
                begun = run.begun_at()[-1]
                alive = wait_until(lambda: run.last_step() > begun, launcher)  # noqa: B023
                if kills and alive:
                    kills[-1].recovery_seconds = round(time.monotonic() - struck, 3)
            if kill.moment == "never":
                alive = launcher.wait() == 0
            elif alive and (alive := killer.wait(kill.moment, launcher)):
                struck = killer.strike(kill, launcher)
            if not alive:
                raise SystemExit(f"start {number} ended with {launcher.wait()} too early: see {run.folder}.out")
        finally:
            if launcher.poll() is None:
                os.killpg(launcher.pid, signal.SIGKILL)
        if kills and len(run.begun_at()) > starts:
            kills[-1].resumed_at = run.begun_at()[starts]
        if number < count:
            kills.append(kill)
            half = ", another half-written" if kill.half_written else ""
            seen = f"last step {kill.last_step}, newest checkpoint {kill.checkpoint}{half}"
            print(f"{number + 1:>2}/{count}  {kill.moment:<5}  {kill.victim:<8}  {seen}", flush=True)
    return kills


def faults(undisturbed: Run, killed: Run, kills: list[Kill]) -> list[str]:
    """What is not as it should be."""
    found = [
        f"kill {number}: the newest complete checkpoint was of step {kill.checkpoint}, the next start began at "
        f"{kill.resumed_at}"
        for number, kill in enumerate(kills, 1)
        if kill.resumed_at not in (None, kill.checkpoint)
    ]
    one, other = (
        [{key: row[key] for key in CURVE if key in row} for row in run.rows("metrics.jsonl")]
        for run in (undisturbed, killed)
    )
    if one != other:
        differing = next((a or b for a, b in itertools.zip_longest(one, other) if a != b), {})
        found.append(f"the curves differ, first at {differing}")
    return found


def table(kills: list[Kill]) -> str:
    lost = [float(kill.last_step - kill.resumed_at) for kill in kills if kill.resumed_at is not None]
    rows: dict[str, list[float]] = {
        "steps lost": lost,
        "seconds from the kill to the first new step": [k.recovery_seconds for k in kills if k.recovery_seconds],
        "seconds from the kill of a rank to the end of all": [k.end_seconds for k in kills if k.victim != "launcher"],
    }
    lines = [f"| {len(kills)} kills | min | median | max |", "|---|---|---|---|"]
    for name, values in rows.items():
        if values:
            figures = (f"{f(values):.4g}" for f in (min, statistics.median, max))
            lines.append(f"| {name} | {' | '.join(figures)} |")
    moments = ", ".join(f"{count} at a {name}" for name, count in Counter(k.moment for k in kills).most_common())
    victims = ", ".join(f"{count} of {name}" for name, count in Counter(k.victim for k in kills).most_common())
    half = sum(kill.half_written for kill in kills)
    return "\n".join([*lines, "", f"{moments}; {victims}; {half} left a checkpoint half-written."])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="YAML file of a run of at least kills × 2 checkpoint intervals")
    parser.add_argument("folder", type=Path, help="where both runs go")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as of `bigtrain pretrain`")
    parser.add_argument("--nproc", type=int, default=2, help="processes")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    config = load_config(options.config, options.overrides)
    command = [sys.executable, "-m", "bigtrain", "pretrain", str(options.config), *options.overrides]
    command += ["--nproc", str(options.nproc)]
    options.folder.mkdir(parents=True)
    undisturbed, killed = Run(command, options.folder / "undisturbed"), Run(command, options.folder / "killed")
    times = run_undisturbed(undisturbed)
    print(times, flush=True)
    killer = Killer(killed, times, options.seed, options.nproc, config.checkpoint.interval)
    kills = run_killed(killed, killer, options.kills)
    (options.folder / "kills.json").write_text(json.dumps([asdict(kill) for kill in kills], indent=2))
    print(table(kills))
    wrong = faults(undisturbed, killed, kills)
    print("\n".join(wrong) if wrong else "Both curves are equal to the last bit.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
