"""The core of attention against softmax(q k^T / sqrt(d)) v written out."""

import math
from collections.abc import Callable
from typing import get_args

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

B, D = 2, 8


def written_out(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """One query head at a time; query head h uses key/value head h // (heads / kv heads)."""
    s, b, heads, d = query.shape
    share = heads // key.shape[2]
    future = torch.ones(s, s, dtype=torch.bool).triu(1)
    out = torch.empty(s, b, heads, d, dtype=query.dtype)
    for h in range(heads):
        scores = torch.einsum("sbd,tbd->bst", query[:, :, h], key[:, :, h // share]) * scale
        weights = scores.masked_fill(future, -math.inf).softmax(-1)
        out[:, :, h] = torch.einsum("bst,tbd->sbd", weights, value[:, :, h // share])
    return out.reshape(s, b, heads * d)


def core(config: Config, softmax_scale: float | None = None) -> CoreAttention:
    return CoreAttention(transformer_config(config), 1, AttnMaskType.causal, "self", softmax_scale=softmax_scale)


def inputs(s: int, heads: int, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(s)
    return torch.randn(s, B, heads, D), torch.randn(s, B, kv_heads, D), torch.randn(s, B, kv_heads, D)


@given(s=st.integers(1, 9), kv_heads=st.integers(1, 4), share=st.integers(1, 3), scale=st.none() | st.floats(0.1, 1))
def test_equals_what_is_written_out(
    s: int, kv_heads: int, share: int, scale: float | None, tiny: Callable[..., Config]
) -> None:
    given_ones = inputs(s, kv_heads * share, kv_heads)
    found = core(tiny(), scale)(*given_ones)
    expected = written_out(*given_ones, scale=scale or 1 / math.sqrt(D))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@given(s=st.integers(2, 9), kv_heads=st.integers(1, 2), share=st.integers(1, 3), padding=st.integers(0, 4))
def test_the_last_of_cached_tokens_sees_what_it_sees_in_the_sequence(
    s: int, kv_heads: int, share: int, padding: int, tiny: Callable[..., Config]
) -> None:
    """With columns of padding before it, which the mask hides, and without any."""
    query, key, value = inputs(s, kv_heads * share, kv_heads)
    expected = written_out(query, key, value, 1 / math.sqrt(D))[-1:]
    hidden = torch.full((padding, B, kv_heads, D), 1e3)
    seen = (torch.arange(padding + s) >= padding).expand(B, 1, 1, -1) if padding else None
    found = core(tiny())(query[-1:], torch.cat([hidden, key]), torch.cat([hidden, value]), seen)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@given(lengths=st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=4), min_size=B, max_size=B))
def test_documents_of_a_sample_are_as_if_alone(lengths: list[list[int]], tiny: Callable[..., Config]) -> None:
    """Forward and backward, whatever the lengths, which differ from sequence to sequence."""
    size = max(sum(row) for row in lengths)
    rows = [(*row, size - sum(row)) if sum(row) < size else tuple(row) for row in lengths]
    packed = tuple(x.requires_grad_() for x in inputs(size, 4, 2))
    alone = tuple(x.detach().clone().requires_grad_() for x in packed)
    found = core(tiny())(*packed, packed_seq_params=PackedDocuments(tuple(rows)))
    expected = torch.empty_like(found)
    for sequence, row in enumerate(rows):
        begin = 0
        for length in row:
            part = [x[begin : begin + length, sequence : sequence + 1] for x in alone]
            expected[begin : begin + length, sequence : sequence + 1] = written_out(*part, scale=1 / math.sqrt(D))
            begin += length
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    weights = torch.randn(found.shape)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    for one, other in zip(packed, alone, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)


def test_the_future_is_not_seen(tiny: Callable[..., Config]) -> None:
    query, key, value = inputs(6, 4, 2)
    before = core(tiny())(query, key, value)
    key[4:], value[4:] = 9.0, -9.0
    after = core(tiny())(query, key, value)
    assert torch.equal(before[:4], after[:4])
    assert not torch.isclose(before[4:], after[4:]).any()


def test_dropout_of_attention_is_for_training_alone(tiny: Callable[..., Config]) -> None:
    given_ones = inputs(6, 4, 2)
    dropping = core(tiny("model.attention_dropout=0.5")).eval()
    assert torch.equal(dropping(*given_ones), core(tiny())(*given_ones))


def test_every_activation_has_its_function() -> None:
    assert set(ACTIVATIONS) == set(get_args(ModelConfig.model_fields["hidden_act"].annotation))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_those_of_transformers(name: str) -> None:
    x = torch.linspace(-6, 6, 1001)
    torch.testing.assert_close(ACTIVATIONS[name](x), ACT2FN[name](x), rtol=1e-6, atol=1e-6)
