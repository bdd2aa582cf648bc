"""Initial weights: the same whatever the layout, and distributed as documented."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import T5Config, T5ForConditionalGeneration

from bigtrain.config import Config
from bigtrain.models.initialize import ROWS_PER_BLOCK, normal_box
from bigtrain.models.sharding import Box
from bigtrain.parallel.engine import Engine


def box(key: str, global_shape: tuple[int, ...], offset: tuple[int, ...], shape: tuple[int, ...]) -> Box:
    return Box(key, global_shape, offset, shape, start=0, is_first_copy=True)


def whole(key: str, *shape: int, seed: int = 1) -> torch.Tensor:
    return normal_box(box(key, shape, (0,) * len(shape), shape), seed)


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    """A part of a matrix, or of a stack of matrices, with rows around the borders of a block."""
    around = st.integers(1, 5) | st.integers(ROWS_PER_BLOCK - 2, ROWS_PER_BLOCK + 2) | st.just(2 * ROWS_PER_BLOCK + 1)
    shape = (*draw(st.lists(st.integers(1, 3), max_size=1)), draw(around), draw(st.integers(1, 5)))
    offset = tuple(draw(st.integers(0, n - 1)) for n in shape)
    size = tuple(draw(st.integers(1, n - o)) for n, o in zip(shape, offset, strict=True))
    return box("a", shape, offset, size)


@given(boxes())
def test_a_part_is_the_part_of_the_whole(part: Box) -> None:
    inside = tuple(slice(o, o + n) for o, n in zip(part.offset, part.shape, strict=True))
    assert torch.equal(normal_box(part, 1), whole("a", *part.global_shape)[inside])


def test_name_layer_seed_and_block_draw_otherwise() -> None:
    rows = [
        *whole("a", 2, 2 * ROWS_PER_BLOCK, 4).flatten(0, 1),
        *whole("b", 2, 2 * ROWS_PER_BLOCK, 4).flatten(0, 1),
        *whole("a", 2, 2 * ROWS_PER_BLOCK, 4, seed=2).flatten(0, 1),
    ]
    assert len({tuple(row.tolist()) for row in rows}) == len(rows) == 6 * 2 * ROWS_PER_BLOCK


def test_the_numbers_are_standard_normal() -> None:
    """Moments within four standard errors, and neighbouring blocks, rows and layers unrelated."""
    drawn = whole("a", 4, 3 * ROWS_PER_BLOCK, 64).double()
    n = drawn.numel()
    assert abs(drawn.mean()) < 4 / math.sqrt(n)
    assert abs(drawn.var() - 1) < 4 * math.sqrt(2 / n)
    assert abs((drawn**4).mean() - 3) < 4 * math.sqrt(96 / n)
    for shift, axis in ((1, 0), (1, 1), (ROWS_PER_BLOCK, 1), (1, 2)):
        assert abs((drawn * drawn.roll(shift, axis)).mean()) < 4 / math.sqrt(n)


@pytest.mark.parametrize(("layers", "deviation"), [(2, 0.02), (8, 0.3)])
def test_each_kind_of_weight_starts_as_documented(
    layers: int, deviation: float, tiny: Callable[..., Config], engine_of: Callable[[Config], Engine]
) -> None:
    config = tiny(
        f"model.num_hidden_layers={layers}",
        f"model.initializer_range={deviation}",
        "model.hidden_size=64",
        "model.linear_bias=true",
        "model.normalization=layernorm",
        "model.position_embedding=learned",
    )
    kinds = set()
    for name, parameter in engine_of(config).chunks[0].module.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
            kinds.add("bias")
        elif "norm" in name:
            assert torch.equal(parameter, torch.ones_like(parameter)), name
            kinds.add("norm")
        else:
            into_residual = name.endswith(("linear_proj.weight", "linear_fc2.weight"))
            expected = deviation / math.sqrt(2 * layers) if into_residual else deviation
            assert parameter.std().item() == pytest.approx(expected, rel=5 / math.sqrt(2 * parameter.numel())), name
            kinds.add("residual" if into_residual else "weight")
    assert kinds == {"bias", "norm", "weight", "residual"}


def test_a_t5_starts_as_transformers_does(tiny: Callable[..., Config], engine_of: Callable[[Config], Engine]) -> None:
    """Standard deviations of `transformers`' own initial weights, matrix by matrix."""
    words = ["model.num_key_value_heads=null", "model.position_embedding=relative", "model.hidden_act=relu"]
    config = tiny("model.architecture=t5", "model.gated_mlp=false", "model.hidden_size=64", *words)
    torch.manual_seed(0)
    shape = {"vocab_size": 512, "d_model": 64, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    theirs = T5ForConditionalGeneration(T5Config(**shape, tie_word_embeddings=False))
    layer, across = theirs.decoder.block[0].layer[0].SelfAttention, theirs.decoder.block[0].layer[1].EncDecAttention
    feed_forward = theirs.decoder.block[0].layer[2].DenseReluDense
    ours = dict(engine_of(config).chunks[0].module.named_parameters())
    query, key, value = ours["decoder.layers.0.self_attention.linear_qkv.weight"].view(4, 3, 16, 64).unbind(1)
    pairs = [
        (query, layer.q.weight),
        (key, layer.k.weight),
        (value, layer.v.weight),
        (ours["decoder.layers.0.self_attention.linear_proj.weight"], layer.o.weight),
        (ours["decoder.layers.0.cross_attention.linear_q.weight"], across.q.weight),
        (ours["decoder.layers.0.cross_attention.linear_kv.weight"], across.k.weight),
        (ours["decoder.layers.0.mlp.linear_fc1.weight"], feed_forward.wi.weight),
        (ours["decoder.layers.0.mlp.linear_fc2.weight"], feed_forward.wo.weight),
        (ours["embedding.word_embeddings.weight"], theirs.shared.weight),
        (ours["encoder.relative_attention_bias.weight"], layer.relative_attention_bias.weight),
        (ours["output_layer.weight"], theirs.lm_head.weight / 64**0.5),  # see `_t5_std`
    ]
    for found, expected in pairs:
        error = 4 * sum(1 / math.sqrt(2 * weight.numel()) for weight in (found, expected))
        assert found.std().item() == pytest.approx(expected.std().item(), rel=error)


@pytest.mark.parametrize("zero_centered", [False, True])
@pytest.mark.parametrize("qk_norm", ["head", "projection"])
def test_norms_start_as_the_identity(
    zero_centered: bool, qk_norm: str, tiny: Callable[..., Config], engine_of: Callable[[Config], Engine]
) -> None:
    words = [f"model.zero_centered_norm={str(zero_centered).lower()}", f"model.qk_norm={qk_norm}"]
    config = tiny(*words, "model.norm_placement=around", "model.num_hidden_layers=1")
    norms = [p for n, p in engine_of(config).chunks[0].module.named_parameters() if "norm" in n]
    assert len(norms) == 4 + 2 + 1
    assert all(torch.equal(p, torch.full_like(p, 0 if zero_centered else 1)) for p in norms)


def test_no_two_matrices_are_alike_and_only_the_seed_decides(
    tiny: Callable[..., Config], engine_of: Callable[[Config], Engine]
) -> None:
    first, again, other = (
        {n: p.detach() for n, p in engine_of(tiny(*words)).chunks[0].module.named_parameters() if p.ndim > 1}
        for words in ([], ["optimizer.lr=1.0", "parallel.zero_stage=2"], ["training.seed=7"])
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    beginnings = {tuple(p.flatten()[:4].tolist()) for model in (first, other) for p in model.values()}
    assert len(beginnings) == 2 * len(first)
