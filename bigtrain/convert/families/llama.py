"""Llama: 1 to 3, and whatever has its shape."""

from bigtrain.convert.family import Family, read_rope_scaling, write_rope_scaling
from bigtrain.convert.mapping import GATE, KEY, QUERY, UP, VALUE, WHOLE, WeightMap

WEIGHTS: WeightMap = {
    "embedding.word_embeddings.weight": {"model.embed_tokens.weight": WHOLE},
    "decoder.layers.input_layernorm.weight": {"model.layers.{layer}.input_layernorm.weight": WHOLE},
    "decoder.layers.self_attention.linear_qkv.weight": {
        "model.layers.{layer}.self_attn.q_proj.weight": QUERY,
        "model.layers.{layer}.self_attn.k_proj.weight": KEY,
        "model.layers.{layer}.self_attn.v_proj.weight": VALUE,
    },
    "decoder.layers.self_attention.linear_proj.weight": {"model.layers.{layer}.self_attn.o_proj.weight": WHOLE},
    "decoder.layers.pre_mlp_layernorm.weight": {"model.layers.{layer}.post_attention_layernorm.weight": WHOLE},
    "decoder.layers.mlp.linear_fc1.weight": {
        "model.layers.{layer}.mlp.gate_proj.weight": GATE,
        "model.layers.{layer}.mlp.up_proj.weight": UP,
    },
    "decoder.layers.mlp.linear_fc2.weight": {"model.layers.{layer}.mlp.down_proj.weight": WHOLE},
    "decoder.final_layernorm.weight": {"model.norm.weight": WHOLE},
    "output_layer.weight": {"lm_head.weight": WHOLE},  # absent where the embeddings are tied
}

QK_NORMS: WeightMap = {
    "decoder.layers.self_attention.q_layernorm.weight": {"model.layers.{layer}.self_attn.q_norm.weight": WHOLE},
    "decoder.layers.self_attention.k_layernorm.weight": {"model.layers.{layer}.self_attn.k_norm.weight": WHOLE},
}
"""Of the families that have them."""

SHAPE = {"position_embedding": "rope", "normalization": "rmsnorm", "gated_mlp": True}

KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_hidden_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "num_key_value_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "hidden_act": "hidden_act",
    "max_position_embeddings": "max_position_embeddings",
    "initializer_range": "initializer_range",
    "norm_eps": "rms_norm_eps",
    "rope_theta": "rope_theta",
    "tie_word_embeddings": "tie_word_embeddings",
    "attention_dropout": "attention_dropout",
}

BUFFERS = (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)

LLAMA = Family(
    name="Llama",
    model_type="llama",
    architecture="LlamaForCausalLM",
    weights=WEIGHTS,
    shape=SHAPE,
    keys=KEYS,
    write=write_rope_scaling,
    read=read_rope_scaling,
    ignored=frozenset({"pretraining_tp"}),  # how some matrices are cut while multiplied
    buffers=BUFFERS,
)
