"""GPT-NeoX and Pythia. Its joint query-key-value matrix has Megatron's order, of which it came."""

from bigtrain.convert.family import Family, read_rope_scaling, write_rope_scaling
from bigtrain.convert.mapping import WHOLE

_LAYER = "gpt_neox.layers.{layer}."
_MODULES = {
    "input_layernorm": "input_layernorm",
    "self_attention.linear_qkv": "attention.query_key_value",
    "self_attention.linear_proj": "attention.dense",
    "pre_mlp_layernorm": "post_attention_layernorm",
    "mlp.linear_fc1": "mlp.dense_h_to_4h",
    "mlp.linear_fc2": "mlp.dense_4h_to_h",
}

GPT_NEOX = Family(
    name="GPT-NeoX",
    model_type="gpt_neox",
    architecture="GPTNeoXForCausalLM",
    weights={
        "embedding.word_embeddings.weight": {"gpt_neox.embed_in.weight": WHOLE},
        **{
            f"decoder.layers.{ours}.{part}": {f"{_LAYER}{theirs}.{part}": WHOLE}
            for ours, theirs in _MODULES.items()
            for part in ("weight", "bias")
        },
        "decoder.final_layernorm.weight": {"gpt_neox.final_layer_norm.weight": WHOLE},
        "decoder.final_layernorm.bias": {"gpt_neox.final_layer_norm.bias": WHOLE},
        "output_layer.weight": {"embed_out.weight": WHOLE},
    },
    shape={"position_embedding": "rope", "normalization": "layernorm", "gated_mlp": False, "linear_bias": True},
    keys={
        "vocab_size": "vocab_size",
        "hidden_size": "hidden_size",
        "intermediate_size": "intermediate_size",
        "num_hidden_layers": "num_hidden_layers",
        "num_attention_heads": "num_attention_heads",
        "hidden_act": "hidden_act",
        "max_position_embeddings": "max_position_embeddings",
        "initializer_range": "initializer_range",
        "norm_eps": "layer_norm_eps",
        "rope_theta": "rotary_emb_base",
        "partial_rotary_factor": "rotary_pct",
        "parallel_residual": "use_parallel_residual",
        "tie_word_embeddings": "tie_word_embeddings",
        "attention_dropout": "attention_dropout",
        "hidden_dropout": "hidden_dropout",
    },
    write=write_rope_scaling,
    read=read_rope_scaling,
    ignored=frozenset({"classifier_dropout", "partial_rotary_factor"}),  # the latter is another name of rotary_pct
    buffers=(
        r"gpt_neox\.layers\.\d+\.attention\.(masked_)?bias",
        r"gpt_neox\.layers\.\d+\.attention\.rotary_emb\.inv_freq",
    ),
)
