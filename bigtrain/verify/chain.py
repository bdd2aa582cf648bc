"""`bigtrain verify-layouts --resume`: one run carried from layout to layout is the run that was never interrupted."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby, pairwise
from pathlib import Path

from bigtrain.errors import BigTrainError
from bigtrain.verify.compare import Row, compare, control_drift, cut
from bigtrain.verify.legs import Digest, Leg, Outcome, run_legs


@dataclass(frozen=True)
class Stretch:
    """A part of the chain: a layout, and on how many processes."""

    name: str
    nproc: int
    config: dict[str, object]


@dataclass(frozen=True)
class Arrow:
    """A change of layout, certified."""

    left: str
    """The layout that saved."""
    arrived: str
    """The layout that loaded."""
    step: int
    """Steps done."""
    learning_rate: float
    """Of the last step before."""
    samples: list[list[int]]
    """The samples of each step since the last change, in the order of their positions."""
    saved: Digest
    """Of the checkpoint that was left."""
    loaded: Digest
    """Of what the new layout held after loading it, saved again at once."""

    @property
    def bit_equal(self) -> bool:
        return self.saved == self.loaded


@dataclass(frozen=True)
class Chain:
    """What a chain of layouts did."""

    arrows: list[Arrow]
    rows: list[Row]
    """Each stretch beside the same steps of the run that was never interrupted."""

    @property
    def holds(self) -> bool:
        """Whether every load was bit-equal and every stretch agrees."""
        return all(arrow.bit_equal for arrow in self.arrows) and all(row.agrees for row in self.rows)

    def to_json(self) -> str:
        """The certificate."""
        arrows = [{**asdict(arrow), "bit_equal": arrow.bit_equal} for arrow in self.arrows]
        return json.dumps({"arrows": arrows, "stretches": [asdict(row) for row in self.rows]}, indent=2)


def run_chain(
    stretches: Sequence[Stretch],
    steps: int,
    reference: Outcome,
    controls: Sequence[Outcome],
    precision: str,
    *,
    real_data: bool = False,
) -> Chain:
    """Carry one run through the stretches, `steps` steps each, saved and loaded at every change.

    Args:
        stretches: In order.
        steps: Of each.
        reference: The run in one piece on one process; at least `steps * len(stretches)` steps.
        controls: The same, summed in other orders.
        precision: Of all of them; decides the tolerance.
        real_data: Read the dataset; else tokens are drawn.

    Raises:
        BigTrainError: A stretch failed; its traceback was on the terminal.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        legs = [_leg(number, stretch, steps, folder, real_data) for number, stretch in enumerate(stretches)]
        outcomes: list[Outcome] = []
        for nproc, group in groupby(zip(legs, stretches, strict=True), key=lambda pair: pair[1].nproc):
            done, exit_code = run_legs([leg for leg, _ in group], nproc, folder / f"world-{len(outcomes)}")
            outcomes += done
            if exit_code:
                raise BigTrainError(f"{stretches[len(outcomes)].name} failed after step {len(outcomes) * steps}")
        arrows = [_arrow(*pair, steps * number) for number, pair in enumerate(pairwise(outcomes), 1)]
    rows = []
    for number, outcome in enumerate(outcomes):
        span = number * steps, (number + 1) * steps
        control = control_drift(cut(reference, 0, span[1]), [cut(each, 0, span[1]) for each in controls])
        rows.append(compare(outcome, cut(reference, *span), control, precision, from_start=number == 0))
    return Chain(arrows, rows)


def _leg(number: int, stretch: Stretch, steps: int, folder: Path, real_data: bool) -> Leg:
    begin = folder / f"stretch-{number - 1}" / "left" / f"step-{number * steps:08d}" if number else None
    return Leg(
        stretch.name,
        stretch.config,
        (number * steps, (number + 1) * steps),
        load=str(begin) if begin else None,
        save=str(folder / f"stretch-{number}"),
        real_data=real_data,
    )


def _arrow(left: Outcome, arrived: Outcome, step: int) -> Arrow:
    return Arrow(
        left=left.name,
        arrived=arrived.name,
        step=step,
        learning_rate=left.learning_rates[-1],
        samples=left.sample_ids,
        saved=left.digests["left"],
        loaded=arrived.digests["arrived"],
    )
