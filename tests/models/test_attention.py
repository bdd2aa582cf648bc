"""The core of attention against softmax(q k^T / sqrt(d)) v written out."""

import math
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from megatron.core.transformer.enums import AttnMaskType
from torch import Tensor
from transformers.activations import ACT2FN

from bigtrain.config import Config, ModelConfig
from bigtrain.models.attention import CoreAttention, PackedDocuments
from bigtrain.models.gpt import ACTIVATIONS, transformer_config
from bigtrain.parallel.random import seed_step
from bigtrain.parallel.topology import Layout

B, D = 2, 8


def written_out(
    query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None = None, cap: float | None = None
) -> Tensor:
    """One query head at a time; query head h uses key/value head h // (heads / kv heads)."""
    s, b, heads, d = query.shape
    share = heads // key.shape[2]
    hidden = torch.tensor([[j > i or j <= i - (window or s) for j in range(s)] for i in range(s)])
    out = torch.empty(s, b, heads, d, dtype=query.dtype)
    for h in range(heads):
        scores = torch.einsum("sbd,tbd->bst", query[:, :, h], key[:, :, h // share]) * scale
        if cap is not None:
            scores = torch.tanh(scores / cap) * cap
        weights = scores.masked_fill(hidden, -math.inf).softmax(-1)
        out[:, :, h] = torch.einsum("bst,tbd->sbd", weights, value[:, :, h // share])
    return out.reshape(s, b, heads * d)


def core(config: Config, softmax_scale: float | None = None, **more: Any) -> CoreAttention:
    mcore = transformer_config(config)
    return CoreAttention(mcore, 1, AttnMaskType.causal, "self", softmax_scale=softmax_scale, **more)


def inputs(s: int, heads: int, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(s)
    return torch.randn(s, B, heads, D), torch.randn(s, B, kv_heads, D), torch.randn(s, B, kv_heads, D)


WINDOWS, CAPS = st.none() | st.integers(1, 6), st.none() | st.floats(0.3, 3)


@given(
    s=st.integers(1, 14),
    kv_heads=st.integers(1, 4),
    share=st.integers(1, 3),
    scale=st.none() | st.floats(0.1, 1),
    window=WINDOWS,
    cap=CAPS,
)
def test_equals_what_is_written_out(
    s: int,
    kv_heads: int,
    share: int,
    scale: float | None,
    window: int | None,
    cap: float | None,
    tiny: Callable[..., Config],
) -> None:
    """Forward and backward, with windows that divide the sequence and such that do not."""
    ours = tuple(x.requires_grad_() for x in inputs(s, kv_heads * share, kv_heads))
    theirs = tuple(x.detach().clone().requires_grad_() for x in ours)
    found = core(tiny(), scale, windows=[window], softcap=cap)(*ours)
    expected = written_out(*theirs, scale=scale or 1 / math.sqrt(D), window=window, cap=cap)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert_same_gradients(found, ours, expected, theirs)


@given(
    s=st.integers(2, 9),
    kv_heads=st.integers(1, 2),
    share=st.integers(1, 3),
    padding=st.integers(0, 4),
    window=WINDOWS,
    cap=CAPS,
)
def test_the_last_of_cached_tokens_sees_what_it_sees_in_the_sequence(
    s: int, kv_heads: int, share: int, padding: int, window: int | None, cap: float | None, tiny: Callable[..., Config]
) -> None:
    """With columns of padding before it, which the mask hides, and without any."""
    query, key, value = inputs(s, kv_heads * share, kv_heads)
    expected = written_out(query, key, value, scale=1 / math.sqrt(D), window=window, cap=cap)[-1:]
    hidden = torch.full((padding, B, kv_heads, D), 1e3)
    seen = (torch.arange(padding + s) >= padding).expand(B, 1, 1, -1) if padding else None
    core_of = core(tiny(), windows=[window], softcap=cap)
    found = core_of(query[-1:], torch.cat([hidden, key]), torch.cat([hidden, value]), seen)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def assert_same_gradients(
    found: Tensor, ours: tuple[Tensor, ...], expected: Tensor, theirs: tuple[Tensor, ...]
) -> None:
    """Of the inputs of two outputs, under an uneven loss."""
    weights = torch.randn(found.shape)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)


@given(
    lengths=st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=4), min_size=B, max_size=B),
    window=WINDOWS,
    cap=CAPS,
)
def test_documents_of_a_sample_are_as_if_alone(
    lengths: list[list[int]], window: int | None, cap: float | None, tiny: Callable[..., Config]
) -> None:
    """Forward and backward, whatever the lengths, which differ from sequence to sequence."""
    size = max(sum(row) for row in lengths)
    rows = [(*row, size - sum(row)) if sum(row) < size else tuple(row) for row in lengths]
    packed = tuple(x.requires_grad_() for x in inputs(size, 4, 2))
    alone = tuple(x.detach().clone().requires_grad_() for x in packed)
    found = core(tiny(), windows=[window], softcap=cap)(*packed, packed_seq_params=PackedDocuments(tuple(rows)))
    expected = torch.empty_like(found)
    for sequence, row in enumerate(rows):
        begin = 0
        for length in row:
            part = [x[begin : begin + length, sequence : sequence + 1] for x in alone]
            out = written_out(*part, scale=1 / math.sqrt(D), window=window, cap=cap)
            expected[begin : begin + length, sequence : sequence + 1] = out
            begin += length
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert_same_gradients(found, packed, expected, alone)


@pytest.mark.parametrize(
    ("mask_type", "keys"), [(AttnMaskType.causal, 6), (AttnMaskType.padding, 6), (AttnMaskType.padding, 9)]
)
def test_a_bias_is_added_to_the_scores(mask_type: AttnMaskType, keys: int, tiny: Callable[..., Config]) -> None:
    """Forward and backward, with padding or a causal mask, and on as many keys as queries or on others."""
    is_causal = mask_type is AttnMaskType.causal
    query, _, _ = inputs(6, 4, 4)
    _, key, value = inputs(keys, 4, 4)
    bias, copy = (torch.randn(1, 4, 6, keys, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in "ab")
    seen = torch.arange(keys) < torch.tensor([[keys], [keys - 2]])
    attend = CoreAttention(transformer_config(tiny()), 1, mask_type, "self", softmax_scale=1.0)
    mask = None if is_causal else seen[:, None, None]
    found = attend(query, key, value, attention_mask=mask, attention_bias=lambda: bias)
    scores = torch.einsum("sbhd,tbhd->bhst", query, key) + copy
    hidden = torch.ones(6, keys, dtype=torch.bool).triu(1) if is_causal else ~seen[:, None, None]
    weights = scores.masked_fill(hidden, -math.inf).softmax(-1)
    expected = torch.einsum("bhst,tbhd->sbhd", weights, value).flatten(2)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    upstream = torch.randn_like(found)
    (found * upstream).sum().backward()
    (expected * upstream).sum().backward()
    torch.testing.assert_close(bias.grad, copy.grad, rtol=1e-4, atol=1e-5)


def test_the_future_is_not_seen(tiny: Callable[..., Config]) -> None:
    query, key, value = inputs(6, 4, 2)
    before = core(tiny())(query, key, value)
    key[4:], value[4:] = 9.0, -9.0
    after = core(tiny())(query, key, value)
    assert torch.equal(before[:4], after[:4])
    assert not torch.isclose(before[4:], after[4:]).any()


@pytest.mark.parametrize("more", [{}, {"windows": [2]}, {"softcap": 1.0}], ids=str)
def test_dropout_of_attention_is_for_training_alone(
    more: dict[str, Any], world: Layout, tiny: Callable[..., Config]
) -> None:
    """And then drops as many weights as it says: of many equal ones their sum's mean stays, and its variance tells."""
    given_ones = inputs(6, 4, 2)
    dropping = core(tiny("model.attention_dropout=0.5"), **more).eval()
    assert torch.equal(dropping(*given_ones), core(tiny(), **more)(*given_ones))
    seed_step(1, 0, world)
    query, key, value = inputs(400, 4, 2)
    out = dropping.train()(query, torch.zeros_like(key), torch.ones_like(value)).view(400, B, 4, D)[..., 0]
    seen = torch.arange(1, 401).clamp(max=(more.get("windows") or [400])[0])
    deviations = (out - 1) * seen.sqrt().view(-1, 1, 1)  # of a sum of n weights 1/n, half of them doubled: 1 / sqrt(n)
    assert deviations.std().item() == pytest.approx(1, rel=0.1)
    assert out.mean().item() == pytest.approx(1, abs=0.05)


def test_every_activation_has_its_function() -> None:
    assert set(ACTIVATIONS) == set(get_args(ModelConfig.model_fields["hidden_act"].annotation))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_those_of_transformers(name: str) -> None:
    x = torch.linspace(-6, 6, 1001)
    torch.testing.assert_close(ACTIVATIONS[name](x), ACT2FN[name](x), rtol=1e-6, atol=1e-6)
