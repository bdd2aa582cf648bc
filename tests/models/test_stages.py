"""Layers on the chunks of a pipeline: none empty, the largest as small as it can be."""

import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigtrain.config import Config, load_config
from bigtrain.models.stages import balanced_layers, balanced_stretches, layers_per_chunk, stacks_per_chunk

MODELS = Path(__file__).parents[2] / "configs" / "models"


def largest(layers: tuple[int, ...] | list[int], output_cost: float) -> float:
    return max(*layers[:-1], layers[-1] + output_cost) if len(layers) > 1 else layers[0] + output_cost


@given(
    chunks=st.integers(1, 5),
    more=st.integers(0, 7),
    output_cost=st.floats(0, 12) | st.sampled_from([0.0, 0.5, 1.0, 2.0]),
)
def test_no_other_split_has_a_cheaper_largest_chunk(chunks: int, more: int, output_cost: float) -> None:
    layers = chunks + more
    found = balanced_layers(layers, chunks, output_cost)
    others = [c for c in itertools.product(range(1, more + 2), repeat=chunks) if sum(c) == layers]
    assert tuple(found) in others, "every layer once, and no chunk without one"
    assert largest(found, output_cost) == min(largest(other, output_cost) for other in others)


@given(chunks=st.integers(2, 64), layers=st.integers(64, 200))
def test_equal_chunks_differ_by_a_layer_and_the_later_have_it(chunks: int, layers: int) -> None:
    found = balanced_layers(layers, chunks, 0)
    assert sum(found) == layers
    assert found == sorted(found)
    assert found[-1] - found[0] <= 1


@pytest.mark.parametrize(
    ("name", "pipeline", "virtual", "length", "expected"),
    [
        # Llama 3's output layer costs 3.15 GFLOPs a token, a layer of the 8B 1.31 and at 8,192 tokens 1.71
        ("llama3-8b", 2, 1, 8192, [17, 15]),
        ("llama3-8b", 4, 1, 8192, [8, 8, 9, 7]),
        ("llama3-8b", 4, 2, 8192, [4, 4, 4, 4, 4, 4, 5, 3]),
        ("gpt3-175b", 8, 1, 2048, [12] * 8),
        # a small model with a large vocabulary: almost all of the last stage
        ("gpt2-small", 2, 1, 1024, [8, 4]),
    ],
)
def test_the_output_layer_counts_in_the_last_chunk(
    name: str, pipeline: int, virtual: int, length: int, expected: list[int]
) -> None:
    words = [
        "data.train=x",
        f"training={{output_dir: x, steps: 1, global_batch_size: 8, sequence_length: {length}}}",
        f"parallel={{pipeline: {pipeline}, virtual_pipeline: {virtual}}}",
    ]
    assert layers_per_chunk(load_config(MODELS / f"{name}.yaml", words)) == expected


@given(st.data(), st.integers(1, 4))
def test_no_other_cut_of_unequal_layers_has_a_cheaper_largest_chunk(data: st.DataObject, chunks: int) -> None:
    costs = data.draw(st.lists(st.sampled_from([1.0, 1.5, 2.0, 7.0]), min_size=chunks, max_size=8))
    found = balanced_stretches(costs, chunks)

    def costliest(cut: tuple[int, ...] | list[int]) -> float:
        ends = list(itertools.accumulate(cut))
        return max(sum(costs[end - count : end]) for count, end in zip(cut, ends, strict=True))

    every = itertools.product(range(1, len(costs) + 1), repeat=chunks)
    ways = [cut for cut in every if sum(cut) == len(costs)]
    assert tuple(found) in ways
    assert costliest(found) == min(map(costliest, ways))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["parallel={pipeline: 2, layers_per_stage: [5, 2]}"], [(4, 1), (0, 2)]),
        (
            ["parallel={pipeline: 2, virtual_pipeline: 2, layers_per_stage: [1, 1, 4, 1]}"],
            [(1, 0), (1, 0), (2, 2), (0, 1)],
        ),
        # a decoder of 64 / 5 tokens and a vocabulary of 256 cost little: three layers of it less than one more above
        (["parallel={pipeline: 2}"], [(3, 0), (1, 3)]),
    ],
)
def test_a_t5s_encoder_lies_before_its_decoder(words: list[str], expected: list[tuple[int, int]]) -> None:
    run = ["data.train=x", "training={output_dir: x, steps: 1, global_batch_size: 8, sequence_length: 64}"]
    assert stacks_per_chunk(load_config(MODELS / "tiny-t5.yaml", [*run, *words])) == expected


def test_what_was_asked_for_is_given(tiny: Callable[..., Config]) -> None:
    config = tiny("model.num_hidden_layers=6", "parallel={pipeline: 2, layers_per_stage: [5, 1]}")
    assert layers_per_chunk(config) == [5, 1]


def test_stages_need_no_torch() -> None:
    program = "import sys, bigtrain.models.stages; assert 'torch' not in sys.modules, 'torch was imported'"
    subprocess.run([sys.executable, "-c", program], check=True)
