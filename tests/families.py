"""Tiny random models of the families of `transformers`, and what each is in our words.

Nothing of bigtrain is imported here, and the map from Hugging Face's weights to Megatron-core's is written out by hand.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers as hf
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

VOCABULARY, LAYERS, WINDOW = 512, 4, 24
PATTERN = ["sliding_attention", "full_attention"]
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 128,
}
GROUPED = {**SHAPE, "num_key_value_heads": 2}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LINEAR = {"rope_type": "linear", "factor": 4.0}
SHORT, LONG = [1.0 + 0.1 * i for i in range(6)], [2.0 + 1.5 * i for i in range(6)]
LONGROPE = {"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG}


@dataclass(frozen=True)
class Family:
    """A model of `transformers`, and our `model` section of it."""

    config: PretrainedConfig
    section: dict[str, Any]
    controls: dict[str, Any] = field(default_factory=dict)
    """Keys of the section with a value that switches a feature off, which must be seen in the logits."""

    def build(self) -> PreTrainedModel:
        """In float32, the same at every call; nothing is of a value that would hide that it is not used."""
        torch.manual_seed(7)
        config = copy.deepcopy(self.config)  # what a model is saved as is written into its own
        model = hf.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" in name or "ln_" in name or name.endswith("bias"):
                    parameter.add_(0.1 * torch.randn_like(parameter))
        return model


def _config(kind: type[PretrainedConfig], shape: dict[str, Any], **more: Any) -> PretrainedConfig:
    quiet = {"use_cache": False, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
    return kind(**shape, **quiet, initializer_range=0.1, **{"tie_word_embeddings": False, **more})


def _llama(**both: Any) -> Family:
    config = _config(hf.LlamaConfig, GROUPED, rms_norm_eps=1e-5, **both)
    return Family(config, {**GROUPED, **both}, {"rope_scaling": None} if both else {})


GEMMA = {
    **GROUPED,
    "head_dim": 32,
    "norm_eps": 1e-6,
    "hidden_act": "gelu_new",
    "norm_placement": "around",
    "zero_centered_norm": True,
    "scale_embeddings": True,
    "tie_word_embeddings": True,
    "query_pre_attn_scalar": 24.0,
    "sliding_window": WINDOW,
}
GEMMA_CONFIG = {
    "head_dim": 32,
    "rms_norm_eps": 1e-6,
    "query_pre_attn_scalar": 24,
    "sliding_window": WINDOW,
    "tie_word_embeddings": True,
}
GEMMA_OFF = {"query_pre_attn_scalar": None, "scale_embeddings": False, "zero_centered_norm": False}
QWEN3 = {**GROUPED, "head_dim": 24, "norm_eps": 1e-6, "qk_norm": "head"}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
NO_ROUTER_LOSS = {"router_aux_loss_coef": 0.0, "router_z_loss_coef": 0.0}

FAMILIES = {
    "gpt2": Family(
        _config(
            hf.GPT2Config,
            {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": LAYERS, "n_head": 4, "n_inner": 96, "n_positions": 128},
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            tie_word_embeddings=True,
        ),
        {
            **SHAPE,
            "position_embedding": "learned",
            "normalization": "layernorm",
            "hidden_act": "gelu_new",
            "gated_mlp": False,
            "linear_bias": True,
            "tie_word_embeddings": True,
        },
        {"hidden_act": "gelu"},
    ),
    "gpt-neox": Family(
        _config(hf.GPTNeoXConfig, SHAPE, rotary_pct=0.25),
        {
            **SHAPE,
            "partial_rotary_factor": 0.25,
            "normalization": "layernorm",
            "hidden_act": "gelu",
            "gated_mlp": False,
            "linear_bias": True,
            "parallel_residual": True,
        },
        {"partial_rotary_factor": 1.0, "parallel_residual": False},
    ),
    "llama": _llama(),
    "llama-3.1": _llama(rope_scaling=LLAMA3, rope_theta=500.0),
    "llama-linear": _llama(rope_scaling=LINEAR),
    "llama-yarn": _llama(rope_scaling=YARN),
    "mistral": Family(
        _config(hf.MistralConfig, GROUPED, rms_norm_eps=1e-5, sliding_window=WINDOW),
        {**GROUPED, "sliding_window": WINDOW},
        {"sliding_window": None},
    ),
    "mixtral": Family(
        _config(
            hf.MixtralConfig,
            {**GROUPED, "intermediate_size": 48},
            rms_norm_eps=1e-5,
            num_local_experts=4,
            num_experts_per_tok=2,
            rope_theta=10000.0,
        ),
        {**GROUPED, **EXPERTS, **NO_ROUTER_LOSS},
        {"num_experts_per_tok": 3},
    ),
    "qwen2": Family(
        _config(hf.Qwen2Config, GROUPED, rms_norm_eps=1e-6),
        {**GROUPED, "norm_eps": 1e-6, "qkv_bias": True},
    ),
    "qwen3": Family(_config(hf.Qwen3Config, GROUPED, head_dim=24, rms_norm_eps=1e-6), QWEN3),
    "qwen3-moe": Family(
        _config(hf.Qwen3MoeConfig, GROUPED, head_dim=24, rms_norm_eps=1e-6, norm_topk_prob=False, **EXPERTS),
        {**QWEN3, **EXPERTS, **NO_ROUTER_LOSS, "norm_topk_prob": False},
        {"norm_topk_prob": True},
    ),
    "gemma-2": Family(
        _config(
            hf.Gemma2Config,
            GROUPED,
            **GEMMA_CONFIG,
            attn_logit_softcapping=3.0,
            final_logit_softcapping=2.0,
        ),
        {**GEMMA, "layer_types": PATTERN, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 2.0},
        {**GEMMA_OFF, "layer_types": PATTERN[::-1], "attn_logit_softcapping": None, "final_logit_softcapping": None},
    ),
    "gemma-3": Family(
        _config(
            hf.Gemma3TextConfig,
            GROUPED,
            **GEMMA_CONFIG,
            layer_types=PATTERN * (LAYERS // 2),
            rope_theta=1e6,
            rope_local_base_freq=1e3,
            rope_scaling=LINEAR,
        ),
        {
            **GEMMA,
            "layer_types": PATTERN,
            "qk_norm": "head",
            "rope_theta": 1e6,
            "rope_local_theta": 1e3,
            "rope_scaling": LINEAR,
        },
        {**GEMMA_OFF, "layer_types": None, "rope_local_theta": None, "rope_scaling": None},
    ),
    "olmo-2": Family(
        _config(hf.Olmo2Config, GROUPED, rms_norm_eps=1e-6),
        {**GROUPED, "norm_eps": 1e-6, "norm_placement": "after", "qk_norm": "projection"},
    ),
    "phi-3": Family(
        _config(
            hf.Phi3Config,
            GROUPED,
            rms_norm_eps=1e-5,
            partial_rotary_factor=0.75,
            original_max_position_embeddings=32,
            rope_scaling={"type": "longrope", "short_factor": SHORT, "long_factor": LONG},
        ),
        {
            **GROUPED,
            "partial_rotary_factor": 0.75,
            "rope_scaling": {**LONGROPE, "original_max_position_embeddings": 32},
        },
        {"rope_scaling": None},
    ),
}


# ----------------------------------------------------------------------- their weights by our names

Read = Callable[[str], Tensor]
"""Of a layer: a tensor of the family's by its name there."""


def weights(model: PreTrainedModel, section: dict[str, Any]) -> dict[str, Tensor]:
    """A model's weights under Megatron-core's global names, layers stacked along the first axis."""
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    kind = model.config.model_type
    names, in_layer, prefix = {
        "gpt2": (GPT2, _gpt2_layer, "transformer.h.{}."),
        "gpt_neox": (GPT_NEOX, _gpt_neox_layer, "gpt_neox.layers.{}."),
    }.get(kind, (LLAMA, _llama_layer, "model.layers.{}."))
    found = {ours: state[theirs] for ours, theirs in names.items() if theirs in state}
    if section.get("tie_word_embeddings"):
        found.pop("output_layer.weight", None)
    layers = []
    for number in range(LAYERS):
        at = prefix.format(number)
        here = {name.removeprefix(at): tensor for name, tensor in state.items() if name.startswith(at)}
        layers.append(in_layer(here, section))
    return found | {f"decoder.layers.{name}": torch.stack([layer[name] for layer in layers]) for name in layers[0]}


GPT2 = {
    "embedding.word_embeddings.weight": "transformer.wte.weight",
    "embedding.position_embeddings.weight": "transformer.wpe.weight",
    "decoder.final_layernorm.weight": "transformer.ln_f.weight",
    "decoder.final_layernorm.bias": "transformer.ln_f.bias",
}
GPT_NEOX = {
    "embedding.word_embeddings.weight": "gpt_neox.embed_in.weight",
    "decoder.final_layernorm.weight": "gpt_neox.final_layer_norm.weight",
    "decoder.final_layernorm.bias": "gpt_neox.final_layer_norm.bias",
    "output_layer.weight": "embed_out.weight",
}
LLAMA = {
    "embedding.word_embeddings.weight": "model.embed_tokens.weight",
    "decoder.final_layernorm.weight": "model.norm.weight",
    "output_layer.weight": "lm_head.weight",
}


def _gpt2_layer(state: dict[str, Tensor], section: dict[str, Any]) -> dict[str, Tensor]:
    """Its matrices are transposed."""
    modules = {
        "input_layernorm": "ln_1",
        "pre_mlp_layernorm": "ln_2",
        "self_attention.linear_proj": "attn.c_proj",
        "mlp.linear_fc1": "mlp.c_fc",
        "mlp.linear_fc2": "mlp.c_proj",
    }
    found = {f"{ours}.{part}": state[f"{hers}.{part}"].t() for ours, hers in modules.items() for part in ("bias",)}
    found |= {f"{ours}.weight": _transposed(state[f"{hers}.weight"]) for ours, hers in modules.items()}
    for part in ("weight", "bias"):
        joint = _transposed(state[f"attn.c_attn.{part}"])
        found[f"self_attention.linear_qkv.{part}"] = _qkv(*joint.chunk(3), groups=section["num_attention_heads"])
    return found


def _transposed(x: Tensor) -> Tensor:
    return x.t() if x.ndim == 2 else x


def _gpt_neox_layer(state: dict[str, Tensor], section: dict[str, Any]) -> dict[str, Tensor]:
    """Its joint query-key-value matrix has Megatron's order already."""
    modules = {
        "input_layernorm": "input_layernorm",
        "pre_mlp_layernorm": "post_attention_layernorm",
        "self_attention.linear_qkv": "attention.query_key_value",
        "self_attention.linear_proj": "attention.dense",
        "mlp.linear_fc1": "mlp.dense_h_to_4h",
        "mlp.linear_fc2": "mlp.dense_4h_to_h",
    }
    return {f"{ours}.{part}": state[f"{hers}.{part}"] for ours, hers in modules.items() for part in ("weight", "bias")}


def _llama_layer(state: dict[str, Tensor], section: dict[str, Any]) -> dict[str, Tensor]:
    """Llama and all that came of it."""
    placement = section.get("norm_placement", "before")
    found = {"self_attention.linear_proj.weight": state["self_attn.o_proj.weight"], **_feed_forward(state)}
    norms = {
        "before": ["input_layernorm", "", "post_attention_layernorm", ""],
        "after": ["", "post_attention_layernorm", "", "post_feedforward_layernorm"],
        "around": [
            "input_layernorm",
            "post_attention_layernorm",
            "pre_feedforward_layernorm",
            "post_feedforward_layernorm",
        ],
    }[placement]
    ours = ["input_layernorm", "post_self_attn_layernorm", "pre_mlp_layernorm", "post_mlp_layernorm"]
    found |= {f"{a}.weight": state[f"{b}.weight"] for a, b in zip(ours, norms, strict=True) if b}
    for x in "qk":
        if f"self_attn.{x}_norm.weight" in state:
            found[f"self_attention.{x}_layernorm.weight"] = state[f"self_attn.{x}_norm.weight"]
    groups, heads = section["num_key_value_heads"], section["num_attention_heads"]
    for part in ("weight", "bias"):
        if f"self_attn.q_proj.{part}" in state:
            found[f"self_attention.linear_qkv.{part}"] = _qkv(
                *(state[f"self_attn.{x}_proj.{part}"] for x in "qkv"), groups=groups
            )
    if "self_attn.qkv_proj.weight" in state:
        joint = state["self_attn.qkv_proj.weight"]
        size = len(joint) // (heads + 2 * groups)
        parts = joint.split([heads * size, groups * size, groups * size])
        found["self_attention.linear_qkv.weight"] = _qkv(*parts, groups=groups)
    return found


def _feed_forward(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The gate lies above the up projection; experts are stacked."""
    names, router = ("gate_proj", "up_proj", "down_proj"), "mlp.gate.weight"
    at = "mlp.experts.{}."
    if "block_sparse_moe.gate.weight" in state:
        names, router, at = ("w1", "w3", "w2"), "block_sparse_moe.gate.weight", "block_sparse_moe.experts.{}."
    if router in state:
        gate, up, down = (
            torch.stack([state[f"{at.format(expert)}{name}.weight"] for expert in range(4)]) for name in names
        )
        return {
            "mlp.router.weight": state[router],
            "mlp.experts.experts.linear_fc1.weight": torch.cat([gate, up], dim=1),
            "mlp.experts.experts.linear_fc2.weight": down,
        }
    fc1 = state.get("mlp.gate_up_proj.weight")
    if fc1 is None:
        fc1 = torch.cat([state["mlp.gate_proj.weight"], state["mlp.up_proj.weight"]])
    return {"mlp.linear_fc1.weight": fc1, "mlp.linear_fc2.weight": state["mlp.down_proj.weight"]}


def _qkv(q: Tensor, k: Tensor, v: Tensor, groups: int) -> Tensor:
    """Rows of Megatron-core's joint matrix or bias: of each group its queries, its key, its value."""
    parts = [x.reshape(groups, -1, *q.shape[1:]) for x in (q, k, v)]
    return torch.cat(parts, dim=1).reshape(-1, *q.shape[1:])
