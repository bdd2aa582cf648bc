"""`peft`'s adapters on models of `transformers`, and where the same lie in Megatron-core's names, by hand."""

import copy
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

ATTENTION = {"linear_qkv.q_proj": "q", "linear_qkv.k_proj": "k", "linear_qkv.v_proj": "v", "linear_proj.o_proj": "o"}


def _t5_places() -> dict[str, str]:
    """An encoder's layer has a feed-forward after its attention, a decoder's another attention between."""
    found = {}
    for stack, last in (("encoder", 1), ("decoder", 2)):
        layer = stack + ".block.{}.layer."
        for ours, theirs in ATTENTION.items():
            found[f"{stack}.layers.self_attention.{ours}"] = f"{layer}0.SelfAttention.{theirs}"
        found[f"{stack}.layers.mlp.linear_fc1.up_proj"] = f"{layer}{last}.DenseReluDense.wi"
        found[f"{stack}.layers.mlp.linear_fc2.down_proj"] = f"{layer}{last}.DenseReluDense.wo"
    crossing = {"linear_q.q_proj": "q", "linear_kv.k_proj": "k", "linear_kv.v_proj": "v", "linear_proj.o_proj": "o"}
    for ours, theirs in crossing.items():
        found[f"decoder.layers.cross_attention.{ours}"] = f"decoder.block.{{}}.layer.1.EncDecAttention.{theirs}"
    return found


PLACES: dict[str, dict[str, str]] = {
    "gpt": {
        **{f"decoder.layers.self_attention.{k}": f"model.layers.{{}}.self_attn.{v}_proj" for k, v in ATTENTION.items()},
        "decoder.layers.mlp.linear_fc1.gate_proj": "model.layers.{}.mlp.gate_proj",
        "decoder.layers.mlp.linear_fc1.up_proj": "model.layers.{}.mlp.up_proj",
        "decoder.layers.mlp.linear_fc2.down_proj": "model.layers.{}.mlp.down_proj",
    },
    "bert": {
        "encoder.layers.self_attention.linear_qkv.q_proj": "bert.encoder.layer.{}.attention.self.query",
        "encoder.layers.self_attention.linear_qkv.k_proj": "bert.encoder.layer.{}.attention.self.key",
        "encoder.layers.self_attention.linear_qkv.v_proj": "bert.encoder.layer.{}.attention.self.value",
        "encoder.layers.self_attention.linear_proj.o_proj": "bert.encoder.layer.{}.attention.output.dense",
        "encoder.layers.mlp.linear_fc1.up_proj": "bert.encoder.layer.{}.intermediate.dense",
        "encoder.layers.mlp.linear_fc2.down_proj": "bert.encoder.layer.{}.output.dense",
    },
    "t5": _t5_places(),
}


def adapted(model: Any, architecture: str, lora: dict[str, Any]) -> tuple[PeftModel, dict[str, Tensor]]:
    """A copy of the model with random adapters, whose head is trained as well; and the adapters under our names."""
    model, wanted = copy.deepcopy(model), lora.get("target_modules", "all-linear")
    found: dict[str, list[str]] = {}
    modules = dict(model.named_modules())
    for ours, theirs in PLACES[architecture].items():
        if wanted == "all-linear" or ours.rpartition(".")[2] in wanted:
            names = [theirs.format(layer) for layer in range(9)]
            found[ours] = [name for name in names if name in modules]
    head = [name for name in ("score", "classifier", "qa_outputs", "pooler") if any(n.endswith(name) for n in modules)]
    config = LoraConfig(
        r=lora["r"],
        lora_alpha=lora["lora_alpha"],
        target_modules=[name for names in found.values() for name in names],
        modules_to_save=head or None,
    )
    torch.manual_seed(9)
    made = get_peft_model(model, config)
    layers = dict(made.base_model.model.named_modules())
    with torch.no_grad():  # B of zeros would hide the gradients of A
        for names in found.values():
            for name in names:
                layers[name].lora_B["default"].weight.normal_(0, 0.1)
    tensors = {
        f"{ours}.lora_{half}.weight": torch.stack(
            [getattr(layers[name], f"lora_{half}")["default"].weight.detach() for name in names]
        )
        for ours, names in found.items()
        for half in "AB"
    }
    return made, tensors


def trains_a_part(model: Any, freeze: int | str) -> Any:
    """A copy of the model of which the embeddings and the lowest layers, or all but the head, stay as they are."""
    model = copy.deepcopy(model)
    for name, parameter in model.named_parameters():
        words = name.split(".")
        is_head = words[0] in ("score", "classifier", "qa_outputs") or "pooler" in words
        low = any(w.startswith(("embed", "shared")) for w in words)
        numbers = [int(word) for word in words if word.isdecimal()]
        # a T5's tables of positions lie in the first layer, and are of all; its decoder is above its encoder
        if isinstance(freeze, int) and words[0] != "decoder" and "relative_attention_bias" not in words:
            low |= bool(numbers) and numbers[0] < freeze
        parameter.requires_grad_(is_head or not (low or freeze == "all"))
    return model
