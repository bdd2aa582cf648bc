"""T5, with its first feed-forward and tied embeddings or those of v1.1 (Flan-T5), and mT5, which has v1.1's shape."""

from dataclasses import replace
from typing import Any

import numpy as np

from bigtrain.config import ModelConfig
from bigtrain.convert.family import Family
from bigtrain.convert.mapping import (
    CROSS_KEY,
    CROSS_VALUE,
    KEY,
    QUERY,
    VALUE,
    WHOLE,
    Cut,
    WeightMap,
    gate_rows,
    up_rows,
)


def _ungated_rows(model: ModelConfig) -> np.ndarray:
    return np.arange(0 if model.gated_mlp else model.ffn_size)


def _gate_rows(model: ModelConfig) -> np.ndarray:
    return gate_rows(model) if model.gated_mlp else np.arange(0)


def _up_rows(model: ModelConfig) -> np.ndarray:
    return up_rows(model) if model.gated_mlp else np.arange(0)


def _stack(stack: str, feed_forward: int) -> WeightMap:
    """The encoder's or the decoder's names; `feed_forward` is the number of that sub-layer."""
    ours, theirs = f"{stack}.layers.", f"{stack}.block.{{layer}}.layer."
    attention, dense = f"{theirs}0.SelfAttention.", f"{theirs}{feed_forward}.DenseReluDense."
    first = f"{stack}.block.0.layer.0.SelfAttention."  # whose table all layers share
    return {
        f"{stack}.relative_attention_bias.weight": {f"{first}relative_attention_bias.weight": WHOLE},
        f"{ours}input_layernorm.weight": {f"{theirs}0.layer_norm.weight": WHOLE},
        f"{ours}self_attention.linear_qkv.weight": {
            f"{attention}q.weight": QUERY,
            f"{attention}k.weight": KEY,
            f"{attention}v.weight": VALUE,
        },
        f"{ours}self_attention.linear_proj.weight": {f"{attention}o.weight": WHOLE},
        f"{ours}pre_mlp_layernorm.weight": {f"{theirs}{feed_forward}.layer_norm.weight": WHOLE},
        f"{ours}mlp.linear_fc1.weight": {
            f"{dense}wi.weight": Cut(_ungated_rows),
            f"{dense}wi_0.weight": Cut(_gate_rows),
            f"{dense}wi_1.weight": Cut(_up_rows),
        },
        f"{ours}mlp.linear_fc2.weight": {f"{dense}wo.weight": WHOLE},
        f"{stack}.final_layernorm.weight": {f"{stack}.final_layer_norm.weight": WHOLE},
    }


_ACROSS = "decoder.block.{layer}.layer.1."
_CROSSING: WeightMap = {
    "decoder.layers.pre_cross_attn_layernorm.weight": {_ACROSS + "layer_norm.weight": WHOLE},
    "decoder.layers.cross_attention.linear_q.weight": {_ACROSS + "EncDecAttention.q.weight": WHOLE},
    "decoder.layers.cross_attention.linear_kv.weight": {
        _ACROSS + "EncDecAttention.k.weight": CROSS_KEY,
        _ACROSS + "EncDecAttention.v.weight": CROSS_VALUE,
    },
    "decoder.layers.cross_attention.linear_proj.weight": {_ACROSS + "EncDecAttention.o.weight": WHOLE},
}


def _write(model: ModelConfig) -> dict[str, Any]:
    """`gated-gelu` is their word for a gate through what is `gelu_new` elsewhere, which `dense_act_fn` calls so."""
    kind = f"gated-{model.hidden_act.removesuffix('_new')}" if model.gated_mlp else model.hidden_act
    return {"feed_forward_proj": kind, "d_kv": model.head_size}


T5 = Family(
    name="T5",
    model_type="t5",
    architecture="T5ForConditionalGeneration",
    weights={
        "embedding.word_embeddings.weight": {"shared.weight": WHOLE},
        **_stack("encoder", feed_forward=1),
        **_stack("decoder", feed_forward=2),
        **_CROSSING,
        "output_layer.weight": {"lm_head.weight": WHOLE},
    },
    shape={"architecture": "t5", "position_embedding": "relative", "normalization": "rmsnorm"},
    keys={
        "vocab_size": "vocab_size",
        "hidden_size": "d_model",
        "head_dim": "d_kv",
        "intermediate_size": "d_ff",
        "num_hidden_layers": "num_layers",
        "num_decoder_layers": "num_decoder_layers",
        "num_attention_heads": "num_heads",
        "relative_attention_num_buckets": "relative_attention_num_buckets",
        "relative_attention_max_distance": "relative_attention_max_distance",
        "hidden_act": "dense_act_fn",
        "gated_mlp": "is_gated_act",
        "norm_eps": "layer_norm_epsilon",
        "tie_word_embeddings": "tie_word_embeddings",
        "attention_dropout": "dropout_rate",
        "hidden_dropout": "dropout_rate",
    },
    write=_write,
    ignored=frozenset({"initializer_factor", "classifier_dropout"}),
    buffers=(r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",),  # has no use
    copies={f"{stack}.embed_tokens.weight": "shared.weight" for stack in ("encoder", "decoder")},
)

MT5 = replace(T5, name="mT5", model_type="mt5", architecture="MT5ForConditionalGeneration")
