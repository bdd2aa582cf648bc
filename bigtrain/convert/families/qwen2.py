"""Qwen2 and 2.5: a Llama with biases on the query, key and value projections."""

from collections.abc import Mapping
from typing import Any

from bigtrain.config import ModelConfig
from bigtrain.convert.families.llama import BUFFERS, KEYS, SHAPE, WEIGHTS
from bigtrain.convert.family import Family, read_rope_scaling, read_windows, write_rope_scaling, write_windows
from bigtrain.convert.mapping import KEY, QUERY, VALUE


def write(model: ModelConfig) -> dict[str, Any]:
    """Scaled frequencies, and windows with the switch for them."""
    return write_rope_scaling(model) | write_windows(model) | {"use_sliding_window": any(model.windows)}


def read(config: Mapping[str, Any]) -> dict[str, Any]:
    """The way back; without the switch `transformers` has taken the window out."""
    return read_rope_scaling(config) | read_windows(config)


IGNORED = frozenset({"max_window_layers"})  # said in layer_types

QWEN2 = Family(
    name="Qwen2",
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    weights={
        **WEIGHTS,
        "decoder.layers.self_attention.linear_qkv.bias": {
            "model.layers.{layer}.self_attn.q_proj.bias": QUERY,
            "model.layers.{layer}.self_attn.k_proj.bias": KEY,
            "model.layers.{layer}.self_attn.v_proj.bias": VALUE,
        },
    },
    shape={**SHAPE, "qkv_bias": True},
    keys=KEYS,
    write=write,
    read=read,
    ignored=IGNORED,
    buffers=BUFFERS,
)
