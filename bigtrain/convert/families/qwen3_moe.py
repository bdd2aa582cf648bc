"""Qwen3-MoE: a Qwen3 whose feed-forward blocks are experts, in every layer."""

from collections.abc import Mapping
from typing import Any

from bigtrain.config import ModelConfig
from bigtrain.convert.families.llama import BUFFERS, KEYS, QK_NORMS, SHAPE, WEIGHTS
from bigtrain.convert.family import Family, read_rope_scaling, write_rope_scaling
from bigtrain.convert.mapping import GATE, UP, WHOLE

_EXPERT = "model.layers.{layer}.mlp.experts.{expert}."


def _write(model: ModelConfig) -> dict[str, Any]:
    windows = {"use_sliding_window": model.sliding_window is not None, "sliding_window": model.sliding_window}
    return {**write_rope_scaling(model), **windows, "head_dim": model.head_size}


def _read(config: Mapping[str, Any]) -> dict[str, Any]:
    return {**read_rope_scaling(config), "sliding_window": config.get("sliding_window")}


QWEN3_MOE = Family(
    name="Qwen3-MoE",
    model_type="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    weights={
        **WEIGHTS,
        **QK_NORMS,
        "decoder.layers.mlp.router.weight": {"model.layers.{layer}.mlp.gate.weight": WHOLE},
        "decoder.layers.mlp.experts.experts.linear_fc1.weight": {
            _EXPERT + "gate_proj.weight": GATE,
            _EXPERT + "up_proj.weight": UP,
        },
        "decoder.layers.mlp.experts.experts.linear_fc2.weight": {_EXPERT + "down_proj.weight": WHOLE},
    },
    shape={**SHAPE, "qk_norm": "head", "router_z_loss_coef": 0.0},
    keys={
        **KEYS,
        "num_experts": "num_experts",
        "num_experts_per_tok": "num_experts_per_tok",
        "moe_intermediate_size": "moe_intermediate_size",
        "norm_topk_prob": "norm_topk_prob",
        "router_aux_loss_coef": "router_aux_loss_coef",
    },
    write=_write,
    read=_read,
    ignored=frozenset({"output_router_logits", "intermediate_size", "max_window_layers"}),
    buffers=BUFFERS,
)
