"""Every layout that is legal for a configuration and a number of processes."""

import itertools
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from bigtrain.config import Config, ParallelConfig, validate
from bigtrain.errors import ConfigError

AXES = ("tensor", "context", "expert", "pipeline", "virtual_pipeline", "sequence", "zero_stage")


def legal_layouts(config: Config, small: Config, world_size: int, pinned: Collection[str]) -> list[ParallelConfig]:
    """The layouts that both the user's configuration and its small copy allow, the simplest first.

    Args:
        config: The user's.
        small: What will be run.
        world_size: Processes.
        pinned: Axes of `parallel` that keep the value they have in `config`.
    """
    return [
        layout
        for layout in _candidates(config.parallel, world_size, pinned)
        if _is_legal(config, layout, world_size) and _is_legal(small, layout, world_size)
    ]


def why_not(config: Config, world_size: int, pinned: Collection[str]) -> str:
    """What is wrong with the simplest layout."""
    first = next(_candidates(config.parallel, world_size, pinned))
    try:
        validate(config.model_copy(update={"parallel": first}), world_size)
    except ConfigError as error:
        return str(error)
    return ""


def _candidates(given: ParallelConfig, world_size: int, pinned: Collection[str]) -> Iterator[ParallelConfig]:
    divisors = [n for n in range(1, world_size + 1) if world_size % n == 0]
    choices: dict[str, list[Any]] = {
        "tensor": divisors,
        "context": divisors,
        "expert": divisors,
        "pipeline": divisors,
        "virtual_pipeline": [1, 2],
        "sequence": [False, True],
        "zero_stage": [0, 1, 2, 3],
    }
    choices |= {axis: [getattr(given, axis)] for axis in pinned}
    for values in itertools.product(*(choices[axis] for axis in AXES)):
        layout = given.model_copy(update={"layers_per_stage": None, **dict(zip(AXES, values, strict=True))})
        if layout.sequence and layout.tensor == 1 and "sequence" not in pinned:
            continue  # says nothing
        yield layout


def _is_legal(config: Config, layout: ParallelConfig, world_size: int) -> bool:
    try:
        validate(config.model_copy(update={"parallel": layout}), world_size)
    except ConfigError:
        return False
    return True


def one_stage_each(layouts: Sequence[ParallelConfig]) -> list[ParallelConfig]:
    """Of the layouts that differ in their ZeRO stage alone one, so that the stages take turns."""
    by_shape: dict[str, list[ParallelConfig]] = {}
    for layout in layouts:
        by_shape.setdefault(layout.model_copy(update={"zero_stage": 0}).model_dump_json(), []).append(layout)
    return [same[turn % len(same)] for turn, same in enumerate(by_shape.values())]


def name(layout: ParallelConfig, world_size: int) -> str:
    """A layout in the usual letters: `TP2+SP PP2 VPP2 DP2 ZeRO-1`."""
    sizes = {
        "TP": layout.tensor,
        "CP": layout.context,
        "EP": layout.expert,
        "PP": layout.pipeline,
        "VPP": layout.virtual_pipeline,
        "DP": world_size // layout.model_parallel_size,
    }
    words = [f"{axis}{size}{'+SP' * (axis == 'TP' and layout.sequence)}" for axis, size in sizes.items() if size > 1]
    offload = ["offloaded"] if layout.offload == "optimizer" else []
    return " ".join([*words, f"ZeRO-{layout.zero_stage}", *offload])
