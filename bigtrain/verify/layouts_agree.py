"""`bigtrain verify-layouts [--resume]`: every legal layout trains what one process trains, and goes on with it."""

import json
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bigtrain.config import Config, ParallelConfig
from bigtrain.errors import BigTrainError, ConfigError
from bigtrain.verify.chain import Chain, Stretch, run_chain
from bigtrain.verify.compare import Row, compare, control_drift
from bigtrain.verify.layouts import legal_layouts, name, one_stage_each, why_not
from bigtrain.verify.legs import Leg, Outcome, run_legs
from bigtrain.verify.shrink import shrunken

ALONE = ParallelConfig(zero_stage=0)


@dataclass(frozen=True)
class Verdict:
    """What was found."""

    reference: Outcome
    """One process, ZeRO-0."""
    control: float
    """Drift of one process that sums in another order."""
    rows: list[Row]
    failed: list[str]
    """Layouts that ended with an error; the traceback was on the terminal."""

    @property
    def all_agree(self) -> bool:
        """Whether nothing failed and nothing differed."""
        return not self.failed and all(row.agrees for row in self.rows)

    def to_json(self) -> str:
        """The certificate."""
        return json.dumps(asdict(self), indent=2)


def verify_layouts(
    config: Config, world_size: int, pinned: Collection[str] = (), steps: int = 5, precision: str = "fp32"
) -> Verdict:
    """Train a small copy of the configuration under every layout that is legal on `world_size` processes.

    Args:
        config: The user's; see :func:`bigtrain.verify.shrink.shrunken` for what becomes of it.
        world_size: Processes, all on this machine.
        pinned: Axes of `parallel` that are not varied.
        steps: Of each layout.
        precision: `fp32`, where a wrong reduction cannot hide in rounding, or `bf16`.

    Raises:
        ConfigError: No layout is legal.
    """
    small = shrunken(config, world_size, steps, precision)
    layouts = legal(config, small, world_size, pinned)
    with tempfile.TemporaryDirectory() as folder:
        reference, *controls = run_alone(small, steps, Path(folder))
        legs = [Leg(name(layout, world_size), with_layout(small, layout), (0, steps)) for layout in layouts]
        outcomes, failed = run_all(legs, world_size, Path(folder))
    control = control_drift(reference, controls)
    rows = [compare(outcome, reference, control, precision) for outcome in outcomes]
    return Verdict(reference, control, rows, failed)


def verify_resume(
    config: Config, world_size: int, pinned: Collection[str] = (), steps: int = 2, precision: str = "fp32"
) -> Chain:
    """Carry one run of a small copy of the configuration from one process through all layouts and back.

    Each way of splitting the model is visited once; the ZeRO stages change from one to the next.

    Args:
        config, world_size, pinned, precision: As for :func:`verify_layouts`.
        steps: Of each layout.

    Raises:
        ConfigError: No layout is legal.
        BigTrainError: A layout failed; its traceback was on the terminal.
    """
    layouts = one_stage_each(legal(config, shrunken(config, world_size, steps, precision), world_size, pinned))
    total = steps * (len(layouts) + 2)
    small = shrunken(config, world_size, total, precision)
    alone = Stretch("one process", 1, with_layout(small, ALONE))
    among = [Stretch(name(layout, world_size), world_size, with_layout(small, layout)) for layout in layouts]
    with tempfile.TemporaryDirectory() as folder:
        reference, *controls = run_alone(small, total, Path(folder))
    return run_chain([alone, *among, alone], steps, reference, controls, precision)


def legal(config: Config, small: Config, world_size: int, pinned: Collection[str]) -> list[ParallelConfig]:
    """:func:`bigtrain.verify.layouts.legal_layouts`, of which there must be one."""
    layouts = legal_layouts(config, small, world_size, pinned)
    if not layouts:
        why = why_not(config, world_size, pinned) or why_not(small, world_size, pinned)
        raise ConfigError(f"no layout of {world_size} processes is legal for this configuration: {why}")
    return layouts


def run_alone(small: Config, steps: int, folder: Path) -> list[Outcome]:
    """One process, and the controls: the same in micro-batches of other sizes, which only sum in another order."""
    sizes = sorted({1, 2, small.training.global_batch_size})
    legs = [
        Leg(f"one process, micro-batches of {size}", with_layout(small, ALONE, micro_batch_size=size), (0, steps))
        for size in sizes
    ]
    outcomes, exit_code = run_legs(legs, 1, folder / "alone")
    if exit_code:
        raise BigTrainError("the small copy of the configuration does not run on one process: see above")
    return outcomes


def with_layout(small: Config, layout: ParallelConfig, **training: int) -> dict[str, object]:
    """The configuration under a layout, as JSON."""
    changed = small.model_copy(update={"parallel": layout, "training": small.training.model_copy(update=training)})
    return changed.model_dump(mode="json")


def run_all(legs: Sequence[Leg], nproc: int, folder: Path) -> tuple[list[Outcome], list[str]]:
    """A layout that fails ends its world; the rest go on in a new one."""
    outcomes: list[Outcome] = []
    failed: list[str] = []
    while left := legs[len(outcomes) + len(failed) :]:
        done, exit_code = run_legs(left, nproc, folder / f"world-{len(failed)}")
        outcomes += done
        if exit_code:
            failed.append(left[len(done)].name)
    return outcomes, failed
