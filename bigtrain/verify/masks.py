"""`bigtrain verify-masks`: what must not be seen is not seen, in every layout and by every kind of attention."""

import json
import tempfile
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path

from bigtrain.config import Config, ParallelConfig, exchanges_heads
from bigtrain.errors import ConfigError
from bigtrain.verify.layouts import name, one_stage_each
from bigtrain.verify.layouts_agree import legal, run_all, with_layout
from bigtrain.verify.legs import Leg, Moves
from bigtrain.verify.shrink import shrunken

STILL = 1e-5
"""Largest relative change of a sum of losses that rounding explains. (Experts multiply other tokens together.)"""
MOVED = 1e-4
"""Least change that shows that the perturbation was one."""


@dataclass(frozen=True)
class MaskRow:
    """What moved in a layout, relative to what was there; see :class:`bigtrain.verify.legs.Moves`."""

    name: str
    moves: Moves

    @property
    def tight(self) -> bool:
        """Whether what must stay stayed, and what may move did: a probe that moves nothing proves nothing."""
        m = self.moves
        stays = [move for move in (m.earlier, m.others) if move is not None]
        moves = [move for move in (m.later, m.own) if move is not None]
        return all(move <= STILL for move in stays) and all(move >= MOVED for move in moves)


@dataclass(frozen=True)
class Tightness:
    """What was found."""

    rows: list[MaskRow]
    failed: list[str]
    """Layouts that ended with an error; the traceback was on the terminal."""

    @property
    def all_tight(self) -> bool:
        """Whether nothing failed and nothing leaked."""
        return not self.failed and all(row.tight for row in self.rows)

    def to_json(self) -> str:
        """The certificate."""
        return json.dumps({"rows": [{**asdict(row), "tight": row.tight} for row in self.rows], "failed": self.failed})


def verify_masks(config: Config, world_size: int, pinned: Collection[str] = ()) -> Tightness:
    """Perturb what must not be seen, in a small copy of the configuration and in every legal layout.

    Once the tokens from some position on: no loss before may move. Once, with `data.packing=documents`, all tokens of
    one document of each sample: no loss of another document may. Forward passes alone, in float32; each way of
    splitting the model is tried once, the ZeRO stages taking turns.

    Args:
        config: The user's; see :func:`bigtrain.verify.shrink.shrunken` for what becomes of it.
        world_size: Processes, all on this machine.
        pinned: Axes of `parallel` that are not varied.

    Raises:
        ConfigError: No layout is legal, or the architecture is not GPT.
    """
    if config.model.architecture != "gpt":
        raise ConfigError(
            f"the causal mask of model.architecture=gpt alone is verified, not what {config.model.architecture} has; "
            "see `bigtrain verify-layouts` for whether its layouts agree"
        )
    small = shrunken(config, world_size, 1, "fp32")
    causal = _packed(small, "contiguous")
    layouts = one_stage_each(legal(_packed(config, "contiguous"), causal, world_size, pinned))
    legs = [_leg(causal, layout, world_size) for layout in layouts]
    apart = _packed(small, "documents")
    legs += [_leg(apart, layout, world_size) for layout in layouts if _takes_documents(apart, layout)]
    with tempfile.TemporaryDirectory() as folder:
        outcomes, failed = run_all(legs, world_size, Path(folder))
    return Tightness([MaskRow(outcome.name, outcome.moves) for outcome in outcomes if outcome.moves], failed)


def _packed(config: Config, packing: str) -> Config:
    return config.model_copy(update={"data": config.data.model_copy(update={"packing": packing})})


def _takes_documents(small: Config, layout: ParallelConfig) -> bool:
    return layout.context == 1 or exchanges_heads(small.model_copy(update={"parallel": layout}))


def _leg(config: Config, layout: ParallelConfig, world_size: int) -> Leg:
    kind = "documents" if config.data.packing == "documents" else "one stream"
    return Leg(f"{name(layout, world_size)}, {kind}", with_layout(config, layout), (0, 0), probe=True)
