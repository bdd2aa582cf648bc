"""Phi-3 and 4: a Llama with joint matrices, and `longrope`, whose original length stands beside it."""

from collections.abc import Mapping
from typing import Any

from bigtrain.config import ModelConfig
from bigtrain.convert.families.llama import BUFFERS, KEYS, SHAPE, WEIGHTS
from bigtrain.convert.family import Family, read_rope_scaling, write_rope_scaling
from bigtrain.convert.mapping import QUERY_KEY_VALUE, WHOLE

_ORIGINAL = "original_max_position_embeddings"


def _write(model: ModelConfig) -> dict[str, Any]:
    found = write_rope_scaling(model)
    if model.rope_scaling is not None:
        scaling = dict(found["rope_scaling"])
        found = {_ORIGINAL: scaling.pop(_ORIGINAL, None), "rope_scaling": {"type": scaling.pop("rope_type"), **scaling}}
    return {**found, "sliding_window": model.sliding_window}


def _read(config: Mapping[str, Any]) -> dict[str, Any]:
    found = read_rope_scaling(config)
    if not found or found["rope_scaling"]["rope_type"] != "longrope":  # it has no other
        return {}
    return {"rope_scaling": {**found["rope_scaling"], _ORIGINAL: config[_ORIGINAL]}}


PHI3 = Family(
    name="Phi-3",
    model_type="phi3",
    architecture="Phi3ForCausalLM",
    weights={
        **WEIGHTS,
        "decoder.layers.self_attention.linear_qkv.weight": {
            "model.layers.{layer}.self_attn.qkv_proj.weight": QUERY_KEY_VALUE
        },
        "decoder.layers.mlp.linear_fc1.weight": {"model.layers.{layer}.mlp.gate_up_proj.weight": WHOLE},
    },
    shape=SHAPE,
    keys={
        **KEYS,
        "sliding_window": "sliding_window",
        "partial_rotary_factor": "partial_rotary_factor",
        "hidden_dropout": ("resid_pdrop", "embd_pdrop"),
    },
    write=_write,
    read=_read,
    ignored=frozenset({_ORIGINAL}),  # without longrope it says nothing
    buffers=BUFFERS,
)
