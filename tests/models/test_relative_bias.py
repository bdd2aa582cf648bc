"""T5's relative positions against `transformers`' own."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import T5Config
from transformers.models.t5.modeling_t5 import T5Attention

from bigtrain.config import Config
from bigtrain.models.gpt import transformer_config
from bigtrain.models.relative_bias import RelativeBias, bucket_of
from bigtrain.parallel.topology import Layout

HEADS = 4


@given(
    buckets=st.integers(2, 40).map(lambda half: 2 * half),
    beyond=st.integers(1, 300),
    bidirectional=st.booleans(),
)
def test_every_distance_is_in_the_same_bucket(buckets: int, beyond: int, bidirectional: bool) -> None:
    distances, farthest = torch.arange(-700, 700), buckets // 2 + beyond
    expected = T5Attention._relative_position_bucket(distances, bidirectional, buckets, farthest)
    assert torch.equal(bucket_of(distances, buckets, farthest, bidirectional), expected)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("length", [1, 2, 37])
def test_equals_transformers_forward_and_backward(
    length: int, bidirectional: bool, world: Layout, tiny: Callable[..., Config]
) -> None:
    torch.manual_seed(length)
    ours = RelativeBias(transformer_config(tiny()), 8, 20, bidirectional=bidirectional, is_stage_copy=False)
    options = {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 20}
    config = T5Config(d_model=32, num_heads=HEADS, is_decoder=not bidirectional, **options)
    theirs = T5Attention(config, has_relative_attention_bias=True, layer_idx=0)
    table = theirs.relative_attention_bias.weight
    with torch.no_grad():
        table.copy_(torch.randn(8, HEADS))
        ours.weight.copy_(table)
    found, expected = ours(length), theirs.compute_bias(length, length)
    assert found.shape == (1, HEADS, length, length)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    upstream = torch.randn_like(expected)
    (found * upstream).sum().backward()
    (expected * upstream).sum().backward()
    torch.testing.assert_close(ours.weight.grad, table.grad)
