"""The random numbers of a step are a function of seed, step and place."""

from dataclasses import replace

import torch
from megatron.core.tensor_parallel import get_cuda_rng_tracker

from bigtrain.parallel.random import seed_step
from bigtrain.parallel.topology import Layout


def drawn(seed: int, step: int, layout: Layout) -> tuple[float, float]:
    """What the tensor group shares, and what this process draws for itself."""
    seed_step(seed, step, layout)
    with get_cuda_rng_tracker().fork():
        own = torch.rand(()).item()
    return torch.rand(()).item(), own


def test_the_same_again(world: Layout) -> None:
    before = drawn(1, 5, world)
    drawn(2, 7, world)
    assert drawn(1, 5, world) == before
    assert before[0] != before[1]


def test_everything_else_draws_otherwise(world: Layout) -> None:
    places = [
        (1, 5, world),
        (2, 5, world),
        (1, 6, world),
        (15, 6, world),
        (1, 5, replace(world, data=2, data_rank=1)),
        (1, 5, replace(world, data=2, data_rank=1, context=2)),
        (1, 5, replace(world, data=2, data_rank=1, context=2, context_rank=1)),
        (1, 5, replace(world, pipeline_rank=1)),
    ]
    assert len({number for place in places for number in drawn(*place)}) == 2 * len(places)


def test_the_tensor_rank_is_no_part_of_what_the_group_shares(world: Layout) -> None:
    assert drawn(1, 5, replace(world, tensor_rank=1))[0] == drawn(1, 5, world)[0]
