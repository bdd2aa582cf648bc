"""Rules between the model's own options: each broken once, with the remedies that its message leads to."""

from collections.abc import Callable

import pytest

from bigtrain.config import Config, validate
from bigtrain.errors import ConfigError

Bend = Callable[..., Config]

LLAMA3 = "rope_type: llama3, factor: 8.0, original_max_position_embeddings: 512"
LONGROPE = "rope_type: longrope, original_max_position_embeddings: 512"
FOUR = "[1.0, 1.0, 1.0, 1.0]"

RULES: list[tuple[list[str], str, list[list[str]]]] = [
    # overrides, the whole message, remedies
    (
        ["model.position_embedding=learned", "model.partial_rotary_factor=0.5", "model.rope_local_theta=10.0"],
        "model.partial_rotary_factor and model.rope_local_theta are about rotary positions, but "
        "model.position_embedding is learned; set model.position_embedding=rope or leave them out",
        [["model.partial_rotary_factor=1.0", "model.rope_local_theta=null"]],
    ),
    (
        ["model.position_embedding=learned", "model.scale_embeddings=true"],
        "model.scale_embeddings is true and model.position_embedding is learned: no model scales learned positions; "
        "set model.scale_embeddings=false or model.position_embedding=rope",
        [["model.scale_embeddings=false"], ["model.position_embedding=rope"]],
    ),
    (
        ["model.partial_rotary_factor=0.4"],
        "model.partial_rotary_factor (0.4) of the head size (8) is 3: rotary positions turn pairs; "
        "model.partial_rotary_factor=0.5 would fit",
        [["model.partial_rotary_factor=0.5"]],
    ),
    (
        ["model.partial_rotary_factor=0.1"],
        "model.partial_rotary_factor (0.1) of the head size (8) is 0: rotary positions turn pairs; "
        "model.partial_rotary_factor=0.25 would fit",
        [["model.partial_rotary_factor=0.25"]],
    ),
    (
        ["model.rope_local_theta=100.0"],
        "model.rope_local_theta (100.0) is for layers with a sliding window, and there are none; set "
        "model.sliding_window or leave model.rope_local_theta out",
        [["model.sliding_window=16"], ["model.rope_local_theta=null"]],
    ),
    (
        [f"model.rope_scaling={{{LLAMA3}}}"],
        "model.rope_scaling.rope_type=llama3 needs model.rope_scaling.low_freq_factor and "
        "model.rope_scaling.high_freq_factor",
        [[f"model.rope_scaling={{{LLAMA3}, low_freq_factor: 1.0, high_freq_factor: 4.0}}"]],
    ),
    (
        [f"model.rope_scaling={{{LLAMA3}, low_freq_factor: 4.0, high_freq_factor: 1.0}}"],
        "model.rope_scaling.low_freq_factor (4.0) must be below model.rope_scaling.high_freq_factor (1.0): frequencies "
        "are scaled the more the lower they are",
        [["model.rope_scaling.high_freq_factor=5.0"]],
    ),
    (
        ["model.rope_scaling={rope_type: linear, factor: 2.0, beta_fast: 16.0}"],
        "model.rope_scaling.beta_fast (16.0) says nothing to model.rope_scaling.rope_type=linear; leave it out",
        [["model.rope_scaling.beta_fast=32.0"], ["model.rope_scaling.rope_type=yarn"]],
    ),
    (
        ["model.rope_scaling={rope_type: yarn, factor: 2.0, original_max_position_embeddings: 4096}"],
        "model.rope_scaling.original_max_position_embeddings (4096) is above model.max_position_embeddings (2048), "
        "which is the length after scaling; swap or correct them",
        [["model.max_position_embeddings=8192"], ["model.rope_scaling.original_max_position_embeddings=1024"]],
    ),
    (
        [f"model.rope_scaling={{{LONGROPE}, short_factor: [1.0, 1.0, 1.0], long_factor: {FOUR}}}"],
        "model.rope_scaling.short_factor has 3 numbers for 4 frequencies, half of what is rotated of a head; give as "
        "many",
        [[f"model.rope_scaling.short_factor={FOUR}"]],
    ),
    (
        [
            "model.sliding_window=16",
            "model.rope_local_theta=100.0",
            "model.rope_scaling={rope_type: yarn, factor: 2.0}",
        ],
        "model.rope_scaling.rope_type=yarn cannot be had with model.rope_local_theta: its factor of queries and keys "
        "would be that of all layers; set model.rope_scaling.rope_type=linear or leave model.rope_local_theta out",
        [["model.rope_scaling.rope_type=linear"], ["model.rope_local_theta=null"]],
    ),
    (
        ["model.sliding_window=16", "model.layer_types=[" + ", ".join(["sliding_attention"] * 5) + "]"],
        "model.layer_types has 5 words for model.num_hidden_layers (4); give one a layer, or fewer to have them "
        "repeated",
        [["model.layer_types=[sliding_attention, full_attention, full_attention]"], ["model.num_hidden_layers=5"]],
    ),
    (
        ["model.layer_types=[]"],
        "model.layer_types is empty; give at least one word, or leave it out",
        [["model.layer_types=null"], ["model.layer_types=[full_attention]"]],
    ),
    (
        ["model.layer_types=[sliding_attention]"],
        "model.layer_types has sliding_attention, but model.sliding_window says no size; give one",
        [["model.sliding_window=16"]],
    ),
    (
        ["model.layer_types=[full_attention]", "model.sliding_window=16"],
        "model.sliding_window (16) is that of no layer: model.layer_types has no sliding_attention; leave one of the "
        "two out",
        [["model.sliding_window=null"], ["model.layer_types=null"]],
    ),
    (
        ["model.qk_norm=projection", "model.normalization=layernorm"],
        "model.qk_norm=projection is an RMSNorm, but model.normalization is layernorm; set model.qk_norm=head or "
        "model.normalization=rmsnorm",
        [["model.qk_norm=head"], ["model.normalization=rmsnorm"]],
    ),
]


@pytest.mark.parametrize(("overrides", "told", "remedies"), RULES, ids=[rule[1][:60] for rule in RULES])
def test_rule(bend: Bend, overrides: list[str], told: str, remedies: list[list[str]]) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(bend(*overrides), 1)
    assert str(caught.value) == told
    for remedy in remedies:
        validate(bend(*overrides, *remedy), 1)


@pytest.mark.parametrize(
    ("words", "why", "off"),
    [
        (["model.sliding_window=16"], "which knows no windows", "model.sliding_window=null"),
        (
            ["model.attn_logit_softcapping=30.0"],
            "whose kernels bend no scores",
            "model.attn_logit_softcapping=null",
        ),
        (["data.packing=documents"], "which knows no documents", "data.packing=contiguous"),
    ],
)
def test_what_a_ring_does_not_do(bend: Bend, words: list[str], why: str, off: str) -> None:
    """An exchange of heads does."""
    ring = [*words, "parallel.context=4", "parallel.tensor=2"]
    with pytest.raises(ConfigError) as caught:
        validate(bend(*ring), 8)
    assert str(caught.value).endswith(
        "cannot be had with parallel.context (4), which does not divide the 4 query and 2 key/value heads of a "
        f"process: keys and values go around a ring, {why}; set {off}, or parallel.context could be 1 or 2"
    )
    for remedy in (off, "parallel.context=2"):
        validate(bend(*ring, remedy), 8)


def test_a_short_list_of_layers_is_repeated(bend: Bend) -> None:
    model = bend(
        "model.layer_types=[sliding_attention, full_attention, full_attention]", "model.sliding_window=9"
    ).model
    assert model.windows == [9, None, None, 9]
    assert bend("model.sliding_window=9").model.windows == [9, 9, 9, 9]
    assert bend().model.windows == [None, None, None, None]
