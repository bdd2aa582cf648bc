"""Rotary frequencies against `transformers`' own, for every kind of scaling."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from bigtrain.config import Config, ModelConfig, parse_config, validate
from bigtrain.models.rope import Rotary, TwoRotaries, attention_factor, rotary, scaled
from bigtrain.parallel.topology import Layout

LENGTHS = st.integers(4, 17).map(lambda power: 2**power)
FACTORS = st.floats(1, 64)
SCALINGS = st.one_of(
    st.fixed_dictionaries({"rope_type": st.just("linear"), "factor": FACTORS}),
    st.fixed_dictionaries(
        {
            "rope_type": st.just("llama3"),
            "factor": FACTORS,
            "low_freq_factor": st.floats(0.5, 2),
            "high_freq_factor": st.floats(2.5, 8),
            "original_max_position_embeddings": LENGTHS,
        }
    ),
    st.fixed_dictionaries(
        {"rope_type": st.just("yarn"), "factor": FACTORS},
        optional={
            "original_max_position_embeddings": LENGTHS,
            "attention_factor": st.floats(0.5, 2),
            "beta_fast": st.floats(8, 64),
            "beta_slow": st.floats(0.5, 4),
        },
    ),
)


def model_of(**shape: Any) -> ModelConfig:
    base = {
        "vocab_size": 64,
        "hidden_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 2**17,
    }
    training = {"output_dir": "-", "steps": 1, "global_batch_size": 1, "sequence_length": 16}
    config = parse_config({"model": base | shape, "data": {"train": "-"}, "training": training})
    validate(config, 1)
    return config.model


def theirs(model: ModelConfig, scaling: dict[str, Any], length: int | None = None) -> tuple[torch.Tensor, float]:
    """`transformers`' frequencies and attention factor."""
    config = LlamaConfig(
        hidden_size=model.hidden_size,
        num_attention_heads=model.num_attention_heads,
        head_dim=model.head_size,
        max_position_embeddings=model.max_position_embeddings,
        rope_theta=model.rope_theta,
        rope_scaling=scaling,
        partial_rotary_factor=model.partial_rotary_factor,
    )
    if scaling["rope_type"] == "longrope":
        config.original_max_position_embeddings = scaling["original_max_position_embeddings"]
    return ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config, torch.device("cpu"), length)


def plain(model: ModelConfig) -> torch.Tensor:
    d = model.rotary_size
    return 1.0 / (model.rope_theta ** (torch.arange(0, d, 2, dtype=torch.float32) / d))


@given(scaling=SCALINGS, theta=st.sampled_from([500.0, 1e4, 5e5, 1e6]), part=st.sampled_from([0.25, 0.5, 0.75, 1.0]))
def test_frequencies_are_those_of_transformers(scaling: dict[str, Any], theta: float, part: float) -> None:
    model = model_of(rope_scaling=scaling, rope_theta=theta, partial_rotary_factor=part)
    assert model.rope_scaling is not None
    expected, factor = theirs(model, scaling)
    torch.testing.assert_close(scaled(plain(model), model, model.rope_scaling), expected, rtol=1e-6, atol=0)
    assert attention_factor(model) == pytest.approx(factor)


@given(
    original=LENGTHS,
    factors=st.lists(st.floats(1, 60), min_size=64, max_size=64),
    factor=st.none() | st.floats(0.5, 2),
)
def test_longrope_takes_the_factors_of_the_length(
    original: int, factors: list[float], factor: float | None, world: Layout
) -> None:
    scaling = {
        "rope_type": "longrope",
        "original_max_position_embeddings": original,
        "short_factor": factors[:32],
        "long_factor": factors[32:],
        **({} if factor is None else {"attention_factor": factor}),
    }
    model = model_of(rope_scaling=scaling)
    table = rotary(model, use_cpu_initialization=True)
    for length in (original, original + 1):
        expected, their_factor = theirs(model, scaling, length)
        torch.testing.assert_close(table.get_freqs_non_repeated(length)[1], expected)
        assert attention_factor(model) == pytest.approx(their_factor)


def test_layers_with_a_window_have_a_table_of_their_own(world: Layout, tiny: Callable[..., Config]) -> None:
    """Which is not scaled."""
    words = ["model.sliding_window=4", "model.rope_local_theta=100.0", "model.rope_theta=5000.0"]
    model = tiny(*words, "model.rope_scaling={rope_type: linear, factor: 2.0}").model
    both = rotary(model, use_cpu_initialization=True)
    assert isinstance(both, TwoRotaries)
    everywhere, local = both(6)
    assert everywhere.shape == local.shape == (6, 1, 1, 8)
    torch.testing.assert_close(everywhere[5, 0, 0, 1].item(), 5 * 5000 ** (-2 / 8) / 2)
    torch.testing.assert_close(local[5, 0, 0, 1].item(), 5 * 100 ** (-2 / 8))


def test_a_model_without_any_of_it_has_megatrons_table(world: Layout, tiny: Callable[..., Config]) -> None:
    table = rotary(tiny().model, use_cpu_initialization=True)
    assert isinstance(table, Rotary)
    assert table(16)[3, 0, 0, 2].item() == pytest.approx(3 * 10000 ** (-4 / 8))
    assert math.isinf(table.longest_as_it_is)
    assert attention_factor(tiny().model) == 1
