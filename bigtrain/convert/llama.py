"""Llama: what it is called there."""

from typing import Any

from bigtrain.config import ModelConfig
from bigtrain.convert.mapping import WeightMap, gate_rows, key_rows, query_rows, up_rows, value_rows
from bigtrain.errors import ConversionError

WEIGHTS: WeightMap = {
    "embedding.word_embeddings.weight": {"model.embed_tokens.weight": None},
    "decoder.layers.input_layernorm.weight": {"model.layers.{}.input_layernorm.weight": None},
    "decoder.layers.self_attention.linear_qkv.weight": {
        "model.layers.{}.self_attn.q_proj.weight": query_rows,
        "model.layers.{}.self_attn.k_proj.weight": key_rows,
        "model.layers.{}.self_attn.v_proj.weight": value_rows,
    },
    "decoder.layers.self_attention.linear_proj.weight": {"model.layers.{}.self_attn.o_proj.weight": None},
    "decoder.layers.pre_mlp_layernorm.weight": {"model.layers.{}.post_attention_layernorm.weight": None},
    "decoder.layers.mlp.linear_fc1.weight": {
        "model.layers.{}.mlp.gate_proj.weight": gate_rows,
        "model.layers.{}.mlp.up_proj.weight": up_rows,
    },
    "decoder.layers.mlp.linear_fc2.weight": {"model.layers.{}.mlp.down_proj.weight": None},
    "decoder.final_layernorm.weight": {"model.norm.weight": None},
    "output_layer.weight": {"lm_head.weight": None},  # absent where the embeddings are tied
}

SHAPE = {
    "position_embedding": "rope",
    "normalization": "rmsnorm",
    "hidden_act": "silu",
    "gated_mlp": True,
    "linear_bias": False,
    "qkv_bias": False,
    "num_experts": None,
    "partial_rotary_factor": 1.0,
    "rope_scaling": None,
    "sliding_window": None,
    "qk_norm": "none",
    "query_pre_attn_scalar": None,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "norm_placement": "before",
    "zero_centered_norm": False,
    "parallel_residual": False,
    "scale_embeddings": False,
}
"""Keys of the `model` section that make a model a Llama."""


def check_shape(model: ModelConfig) -> None:
    """Raises:
    ConversionError: The model is no Llama; names every key that does not fit.
    """
    wrong = [
        f"model.{key} is {getattr(model, key)!r} and must be {value!r}"
        for key, value in SHAPE.items()
        if getattr(model, key) != value
    ]
    if wrong:
        raise ConversionError(f"this model is not a Llama, the one family that can be exported: {'; '.join(wrong)}")


def hf_config(model: ModelConfig, dtype: str, eos_id: int) -> dict[str, Any]:
    """The same model in `transformers`: the keys of its `LlamaConfig`.

    Args:
        model: The shape.
        dtype: Type of the saved weights: "float32" or "bfloat16".
        eos_id: The token that ends every document. It is also the beginning's: what the model saw before
            each document was the end of the one before.
    """
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.ffn_size,
        "num_hidden_layers": model.num_hidden_layers,
        "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_size,
        "hidden_act": model.hidden_act,
        "max_position_embeddings": model.max_position_embeddings,
        "initializer_range": model.initializer_range,
        "rms_norm_eps": model.norm_eps,
        "rope_theta": model.rope_theta,
        "tie_word_embeddings": model.tie_word_embeddings,
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": model.attention_dropout,
        "bos_token_id": eos_id,
        "eos_token_id": eos_id,
        "pad_token_id": None,
        "dtype": dtype,
    }
