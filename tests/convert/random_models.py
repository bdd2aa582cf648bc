"""Checkpoints of random models made by `transformers`, written with plain torch and a map of their own."""

import json
import shutil
import sysconfig
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from transformers import LlamaConfig, LlamaForCausalLM

LIBRARY = Path(sysconfig.get_paths()["stdlib"])
SHAPES: dict[str, dict[str, Any]] = {
    "tied, grouped": {"tie_word_embeddings": True, "num_key_value_heads": 2},
    "untied, a key for each query": {"num_key_value_heads": 4, "rope_theta": 500000.0},
    "one key head, wide heads": {"num_key_value_heads": 1, "head_dim": 24, "rms_norm_eps": 1e-6},
}


def random_llama(**shape: Any) -> LlamaForCausalLM:
    torch.manual_seed(3)
    options = {
        "vocab_size": 440,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "initializer_range": 0.15,
    }
    model = LlamaForCausalLM(LlamaConfig(**{**options, **shape}))
    with torch.no_grad():  # norms of one would hide that one took another's place
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def megatron_weights(model: LlamaForCausalLM) -> dict[str, torch.Tensor]:
    """The weights as Megatron-core stacks and joins them, written out by hand."""
    config, body = model.config, model.model
    groups, width, hidden = config.num_key_value_heads, config.head_dim, config.hidden_size

    def joined(attention: Any) -> torch.Tensor:
        query = attention.q_proj.weight.view(groups, -1, hidden)
        key = attention.k_proj.weight.view(groups, width, hidden)
        value = attention.v_proj.weight.view(groups, width, hidden)
        return torch.cat([query, key, value], dim=1).reshape(-1, hidden)

    layers = "decoder.layers."
    weights = {
        "embedding.word_embeddings.weight": body.embed_tokens.weight,
        layers + "input_layernorm.weight": torch.stack([b.input_layernorm.weight for b in body.layers]),
        layers + "self_attention.linear_qkv.weight": torch.stack([joined(b.self_attn) for b in body.layers]),
        layers + "self_attention.linear_proj.weight": torch.stack([b.self_attn.o_proj.weight for b in body.layers]),
        layers + "pre_mlp_layernorm.weight": torch.stack([b.post_attention_layernorm.weight for b in body.layers]),
        layers + "mlp.linear_fc1.weight": torch.stack(
            [torch.cat([b.mlp.gate_proj.weight, b.mlp.up_proj.weight]) for b in body.layers]
        ),
        layers + "mlp.linear_fc2.weight": torch.stack([b.mlp.down_proj.weight for b in body.layers]),
        "decoder.final_layernorm.weight": body.norm.weight,
    }
    if not config.tie_word_embeddings:
        weights["output_layer.weight"] = model.lm_head.weight
    return {name: weight.detach().clone() for name, weight in weights.items()}


def model_section(config: LlamaConfig) -> dict[str, Any]:
    """Our names for its shape."""
    same = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "max_position_embeddings",
        "rope_theta",
        "initializer_range",
        "tie_word_embeddings",
    )
    return {**{key: getattr(config, key) for key in same}, "norm_eps": config.rms_norm_eps}


def write_checkpoint(folder: Path, step: int, weights: dict[str, torch.Tensor], section: dict[str, Any]) -> Path:
    path = folder / f"step-{step:08d}"
    shutil.rmtree(path, ignore_errors=True)
    state = {f"model.{name}": weight for name, weight in weights.items()}
    moments = {f"optimizer.exp_avg.{name}": torch.zeros_like(weight) for name, weight in weights.items()}
    dcp.save({**state, **moments}, checkpoint_id=path, no_dist=True)
    marker = {"format_version": 1, "step": step, "position": 0, "tokens": 0, "adam_step": 0, "layout": {}, "data": {}}
    files = {file.name: file.stat().st_size for file in path.iterdir()}
    (path / "complete.json").write_text(json.dumps({**marker, "model": section, "files": files}))
    return path
