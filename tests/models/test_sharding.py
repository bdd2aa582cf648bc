"""Where local parameters lie in the global model, in one process; `tests/checkpoint` has it for several."""

from collections.abc import Callable
from math import prod

import pytest

from bigtrain.config import Config
from bigtrain.models.gpt import build_gpt
from bigtrain.models.sharding import Box, sharded_parameters
from bigtrain.parallel.topology import Layout

EVERYTHING = ("model.linear_bias=true", "model.normalization=layernorm", "model.position_embedding=learned")


@pytest.mark.parametrize("gated", ["true", "false"])
@pytest.mark.parametrize("tied", ["true", "false"])
def test_boxes_cover_every_local_parameter_once(
    gated: str, tied: str, world: Layout, tiny: Callable[..., Config]
) -> None:
    chunks = build_gpt(tiny(*EVERYTHING, f"model.gated_mlp={gated}", f"model.tie_word_embeddings={tied}"))
    found = sharded_parameters(chunks)
    assert {id(s.parameter) for s in found} == {id(p) for p in chunks[0].parameters()}
    assert len(found) == len({id(s.parameter) for s in found})
    for sharded in found:
        covered = [i for box in sharded.boxes for i in range(box.start, box.start + box.numel)]
        assert sorted(covered) == list(range(sharded.parameter.numel())), sharded.boxes
        assert all(prod(box.shape) == box.numel and box.is_first_copy for box in sharded.boxes)


def test_norms_of_every_place_have_names(world: Layout, tiny: Callable[..., Config]) -> None:
    chunks = build_gpt(tiny("model.norm_placement=around", "model.qk_norm=projection", "model.num_hidden_layers=3"))
    norms = {box.key: box.global_shape for s in sharded_parameters(chunks) for box in s.boxes if "norm" in box.key}
    assert norms == {
        "decoder.layers.input_layernorm.weight": (3, 32),
        "decoder.layers.post_self_attn_layernorm.weight": (3, 32),
        "decoder.layers.pre_mlp_layernorm.weight": (3, 32),
        "decoder.layers.post_mlp_layernorm.weight": (3, 32),
        "decoder.layers.self_attention.q_layernorm.weight": (3, 32),
        "decoder.layers.self_attention.k_layernorm.weight": (3, 16),
        "decoder.final_layernorm.weight": (32,),
    }


def test_names_layers_and_the_two_halves_of_a_gated_matrix(world: Layout, tiny: Callable[..., Config]) -> None:
    chunks = build_gpt(tiny())
    boxes = {id(s.parameter): s.boxes for s in sharded_parameters(chunks)}
    names = dict(chunks[0].named_parameters())
    for layer in range(2):
        key, shape = "decoder.layers.mlp.linear_fc1.weight", (2, 96, 32)
        assert boxes[id(names[f"decoder.layers.{layer}.mlp.linear_fc1.weight"])] == (
            Box(key, shape, offset=(layer, 0, 0), shape=(1, 48, 32), start=0, is_first_copy=True),
            Box(key, shape, offset=(layer, 48, 0), shape=(1, 48, 32), start=48 * 32, is_first_copy=True),
        )
    assert boxes[id(names["embedding.word_embeddings.weight"])] == (
        Box("embedding.word_embeddings.weight", (512, 32), (0, 0), (512, 32), start=0, is_first_copy=True),
    )
