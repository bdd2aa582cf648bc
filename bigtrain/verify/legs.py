"""A stretch of a run under one layout, and what came of it, as JSON between the starter and its workers."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bigtrain.launch.environment import World
from bigtrain.launch.local import run_workers

LEGS = "legs.json"
OUTCOMES = "outcomes.jsonl"


@dataclass(frozen=True)
class Leg:
    """What a world of processes is to do."""

    name: str
    config: dict[str, Any]
    steps: tuple[int, int]
    """The first step, and the one after the last."""
    load: str | None = None
    """A checkpoint's folder to begin with; None: the initial weights."""
    save: str | None = None
    """Where to write a checkpoint of what was loaded (`arrived`) and one of the end (`left`); None: nowhere."""
    probe: bool = False
    """Train nothing, but see what moves when tokens change."""
    real_data: bool = False
    """Read `data.train`; else tokens are drawn at random."""


@dataclass(frozen=True)
class Digest:
    """What a checkpoint holds: SHA-256 over names, shapes and bytes, hexadecimal."""

    weights: str
    """Of the float32 (master) weights."""
    moments: str
    """Of Adam's two moments."""


@dataclass(frozen=True)
class Moves:
    """Relative changes of weighted sums of losses after some tokens were changed."""

    earlier: float
    """Before the tokens that were changed: must be none."""
    later: float
    """At and after them."""
    others: float | None
    """In the other documents of a sample when one was changed: must be none."""
    own: float | None
    """In that document."""


@dataclass(frozen=True)
class Outcome:
    """What a leg did; every list has an entry a step."""

    name: str
    losses: list[float]
    grad_norms: list[float]
    learning_rates: list[float]
    sample_ids: list[list[int]]
    """The samples that the processes really read, in the order of their positions."""
    digests: dict[str, Digest]
    """Of the checkpoints `arrived` and `left`, where there are any."""
    seconds: float
    moves: Moves | None = None
    """Where the leg was a probe."""


def run_legs(legs: Sequence[Leg], nproc: int, folder: Path) -> tuple[list[Outcome], int]:
    """Run legs one after the other in one world of `nproc` processes on this machine.

    Returns:
        The outcomes of the legs that ended well, and the world's exit code: not 0 where a leg failed, which is
        the one after the last outcome. Its traceback is on the terminal.
    """
    folder.mkdir(parents=True)
    (folder / LEGS).write_text(json.dumps([asdict(leg) for leg in legs]))
    command = [sys.executable, "-m", "bigtrain.verify.worker", str(folder)]
    exit_code = run_workers(command, World(nproc), log_dir=folder / "logs")
    return read_outcomes(folder), exit_code


def read_legs(folder: Path) -> list[Leg]:
    """What `run_legs` wrote."""
    return [Leg(**{**leg, "steps": tuple(leg["steps"])}) for leg in json.loads((folder / LEGS).read_text())]


def read_outcomes(folder: Path) -> list[Outcome]:
    """What the worker wrote so far."""
    path = folder / OUTCOMES
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [_outcome(**row) for row in rows]


def _outcome(digests: dict[str, Any], moves: dict[str, Any] | None, **rest: Any) -> Outcome:
    found = {when: Digest(**digest) for when, digest in digests.items()}
    return Outcome(**rest, digests=found, moves=Moves(**moves) if moves else None)
