"""Qwen2 and 2.5: a Llama with biases on the query, key and value projections."""

from bigtrain.convert.families.llama import KEYS, SHAPE, WEIGHTS
from bigtrain.convert.family import Family
from bigtrain.convert.mapping import KEY, QUERY, VALUE

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
    keys={ours: theirs for ours, theirs in KEYS.items() if ours != "head_dim"},
    fixed={"hidden_act": "silu"},
    ignored=frozenset({"max_window_layers"}),  # beside use_sliding_window
)
