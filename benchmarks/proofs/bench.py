"""Where a proof is worked out: commands with what they took, and the scores they leave."""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
SHOWN = "runs/results"
"""The folder that the commands are shown with."""


@dataclass
class Took:
    """Time of commands."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    load: list[float] = field(default_factory=list)
    """Load average before and after."""

    def __add__(self, other: "Took") -> "Took":
        return Took(self.seconds + other.seconds, self.cpu_seconds + other.cpu_seconds, [*self.load, *other.load])


@dataclass(frozen=True)
class Row:
    """A line of a proof's table."""

    name: str
    figures: Mapping[str, str]
    """By the name of their column."""
    about: str = ""
    """Sequence length, examples, steps."""
    took: Took = field(default_factory=Took)


class Bench:
    """A proof's folder. A command that was done there is not done again; of one that was stopped the times add up."""

    def __init__(self, folder: Path, threads: int) -> None:
        self.folder, self.threads = folder, threads
        self.commands: list[str] = []
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / "commands.json"
        self._known: dict[str, Any] = json.loads(self._file.read_text()) if self._file.is_file() else {}

    def bigtrain(self, *words: str | Path) -> Took:
        """Run a command of BigTrain as a user types it, in the project's folder.

        Raises:
            SystemExit: It fails.
        """
        return self._run(["bigtrain", *map(str, words)], [sys.executable, "-m", "bigtrain", *map(str, words)])

    def asset(self, name: str) -> Path:
        """The folder of real data, see `tools/fetch_assets.py`."""
        script = ROOT / "tools" / "fetch_assets.py"
        self.commands.append(f"python tools/fetch_assets.py {name}")
        done = subprocess.run([sys.executable, script, name], capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr)
        return Path(done.stdout.strip())

    def write(self, name: str, content: Mapping[str, Any]) -> Path:
        """A configuration, shown among the commands."""
        path = self.folder / name
        text = yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=120)
        path.write_text(text)
        self.commands.append(f"cat > {self._shown(str(path))} <<END\n{self._shown(text)}END")
        return path

    def write_lines(self, name: str, rows: Iterable[Mapping[str, Any]]) -> Path:
        """JSON lines."""
        path = self.folder / name
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return path

    def predictions(self, name: str, task: str, rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """The scores of a baseline, by `bigtrain evaluate` as those of any model."""
        path = self.write_lines(f"{name}.predictions.jsonl", rows)
        self.bigtrain("evaluate", path, "--task", task)
        return read_scores(self.folder / f"{name}.scores.json")

    def save(self, columns: Sequence[str], rows: Sequence[Row], notes: Sequence[str] = ()) -> None:
        """Keep the table for the page."""
        table = {
            "columns": list(columns),
            "rows": [asdict(row) for row in rows],
            "notes": list(notes),
            "commands": self.commands,
            "threads": self.threads,
            "date": time.strftime("%Y-%m-%d"),
        }
        (self.folder / "table.json").write_text(json.dumps(table, indent=1))

    def _run(self, shown: list[str], command: list[str]) -> Took:
        line = self._shown(" ".join(f"'{word}'" if set(word) & set(" {}[]()") else word for word in shown))
        self.commands.append(line)
        known = {"done": True, **self._known.get(line, {"done": False})}
        so_far = Took(**{key: value for key, value in known.items() if key != "done"})
        if known["done"]:
            return so_far
        print(f"$ {line}", flush=True)
        before, began, load = _cpu_seconds(), time.monotonic(), os.getloadavg()[0]
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads), "PYTHONPATH": str(ROOT)}
        ended = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
        took = so_far + Took(time.monotonic() - began, _cpu_seconds() - before, [load, os.getloadavg()[0]])
        self._known[line] = {**asdict(took), "done": ended == 0}
        self._file.write_text(json.dumps(self._known, indent=1))
        if ended:
            raise SystemExit(f"{line}\nended with {ended}")
        return took

    def _shown(self, line: str) -> str:
        home = str(Path.home())
        found = line.replace(str(self.folder.parent), SHOWN).replace(f"{ROOT}/", "")
        return found.replace(home, "~")


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def read_scores(path: Path) -> dict[str, Any]:
    """What `bigtrain evaluate` wrote."""
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def figure(scores: Mapping[str, Any], name: str, digits: int = 4) -> str:
    """A score with its interval."""
    score = scores["scores"][name]
    if score["low"] is None:
        return f"{score['value']:.{digits}f}"
    return f"{score['value']:.{digits}f} ({score['low']:.{digits}f} to {score['high']:.{digits}f})"


def p_value(scores: Mapping[str, Any], metric: str) -> float:
    """Of the difference from the other model, as `--against` tested it."""
    found: float = next(row["p_value"] for row in scores["differences"] if row["metric"] == metric)
    return found
