"""Configurations as models are published with them, read as ours: the parameters come to what is known of each."""

import json
from pathlib import Path
from typing import Any

import pytest

from bigtrain.convert.families import family_of
from bigtrain.convert.hf_config import read_config
from bigtrain.models.size import parameter_count


def shape(model_type: str, hidden: int, layers: int, heads: int, ffn: int, vocabulary: int, **more: Any) -> dict:
    return {
        "model_type": model_type,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": ffn,
        "vocab_size": vocabulary,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "transformers_version": "4.43.0",
        **more,
    }


LLAMA3 = {
    "factor": 8.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
QWEN = {"use_sliding_window": False, "sliding_window": 131072, "max_window_layers": 28, "rope_theta": 1e6}
LONGROPE = {"type": "longrope", "short_factor": [1.05] * 48, "long_factor": [4.0] * 48}
PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    "Llama-3.1-8B": (
        shape(
            *("llama", 4096, 32, 32, 14336, 128256),
            num_key_value_heads=8,
            rope_theta=500000.0,
            rope_scaling=LLAMA3,
            mlp_bias=False,
            attention_bias=False,
            pretraining_tp=1,
            max_position_embeddings=131072,
            rms_norm_eps=1e-5,
        ),
        8_030_261_248,
    ),
    "SmolLM2-135M": (
        shape(
            *("llama", 576, 30, 9, 1536, 49152),
            num_key_value_heads=3,
            tie_word_embeddings=True,
            is_llama_config=True,
            **{"rope_interleaved": False, "rope_theta": 100000, "transformers.js_config": {"dtype": "q4"}},
        ),
        134_515_008,
    ),
    "Mistral-7B": (shape("mistral", 4096, 32, 32, 14336, 32000, num_key_value_heads=8), 7_241_732_096),
    "Qwen2.5-7B": (shape("qwen2", 3584, 28, 28, 18944, 152064, num_key_value_heads=4, **QWEN), 7_615_616_512),
    "Qwen3-8B": (
        shape("qwen3", 4096, 36, 32, 12288, 151936, num_key_value_heads=8, head_dim=128, **QWEN),
        8_190_735_360,
    ),
    "Qwen3-30B-A3B": (
        shape(
            *("qwen3_moe", 2048, 48, 32, 6144, 151936),
            num_key_value_heads=4,
            head_dim=128,
            num_experts=128,
            num_experts_per_tok=8,
            **{"moe_intermediate_size": 768, "norm_topk_prob": True, "mlp_only_layers": [], **QWEN},
        ),
        30_532_122_624,
    ),
    "Gemma-2-9B": (
        shape(
            *("gemma2", 3584, 42, 16, 14336, 256000),
            num_key_value_heads=8,
            head_dim=256,
            query_pre_attn_scalar=256,
            cache_implementation="hybrid",
            hidden_act="gelu_pytorch_tanh",
            hidden_activation="gelu_pytorch_tanh",
            sliding_window_size=4096,
        ),
        9_241_705_984,
    ),
    "Gemma-3-1B": (
        shape(
            *("gemma3_text", 1152, 26, 4, 6912, 262144),
            num_key_value_heads=1,
            head_dim=256,
            sliding_window=512,
            sliding_window_pattern=6,
            rope_theta=1000000,
            rope_local_base_freq=10000,
            rope_scaling=None,
        ),
        999_885_952,
    ),
    "Phi-3-mini-128k": (
        shape(
            *("phi3", 3072, 32, 32, 8192, 32064),
            num_key_value_heads=32,
            rope_scaling=LONGROPE,
            max_position_embeddings=131072,
            original_max_position_embeddings=4096,
            sliding_window=262144,
            auto_map={"AutoConfig": "x"},
        ),
        3_821_079_552,
    ),
    "Pythia-70M": (shape("gpt_neox", 512, 6, 8, 2048, 50304, rotary_pct=0.25), 70_426_624),
    "Mixtral-8x7B": (
        shape("mixtral", 4096, 32, 32, 14336, 32000, num_key_value_heads=8, num_local_experts=8),
        46_702_792_704,
    ),
    "GPT-2": ({"model_type": "gpt2", "n_ctx": 1024, "activation_function": "gelu_new"}, 124_439_808),
}


@pytest.mark.parametrize(("config", "parameters"), PUBLISHED.values(), ids=PUBLISHED)
def test_a_published_configuration_is_read_whole(config: dict[str, Any], parameters: int, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    family, model, _ = read_config(tmp_path)
    assert family.model_type == config["model_type"]
    assert parameter_count(model) == parameters
    assert family_of(model, origin=family.model_type) is family
