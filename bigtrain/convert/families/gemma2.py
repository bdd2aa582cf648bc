"""Gemma-2: norms around each sub-layer, of one plus their weight, soft-caps, windows in every other layer."""

from typing import Any

from bigtrain.config import ModelConfig
from bigtrain.convert.families.llama import BUFFERS, KEYS, SHAPE, WEIGHTS
from bigtrain.convert.family import Family, read_windows, write_windows
from bigtrain.convert.mapping import WHOLE, WeightMap

_LAYER = "model.layers.{layer}."

WEIGHTS_WITH_NORMS_AROUND: WeightMap = {
    **WEIGHTS,
    "decoder.layers.post_self_attn_layernorm.weight": {_LAYER + "post_attention_layernorm.weight": WHOLE},
    "decoder.layers.pre_mlp_layernorm.weight": {_LAYER + "pre_feedforward_layernorm.weight": WHOLE},
    "decoder.layers.post_mlp_layernorm.weight": {_LAYER + "post_feedforward_layernorm.weight": WHOLE},
}

GEMMA_SHAPE = {
    **SHAPE,
    "hidden_act": "gelu_new",
    "norm_placement": "around",
    "zero_centered_norm": True,
    "scale_embeddings": True,
}

GEMMA_KEYS = {
    **{ours: theirs for ours, theirs in KEYS.items() if ours != "hidden_act"},
    "query_pre_attn_scalar": "query_pre_attn_scalar",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}


def write(model: ModelConfig) -> dict[str, Any]:
    """What has another default there than ours; `gelu_pytorch_tanh` is their name of our `gelu_new`."""
    return {
        **write_windows(model),
        "hidden_activation": "gelu_pytorch_tanh",
        "head_dim": model.head_size,
        "query_pre_attn_scalar": model.query_pre_attn_scalar or model.head_size,
        "attn_logit_softcapping": model.attn_logit_softcapping,
        "final_logit_softcapping": model.final_logit_softcapping,
    }


GEMMA2 = Family(
    name="Gemma-2",
    model_type="gemma2",
    architecture="Gemma2ForCausalLM",
    weights=WEIGHTS_WITH_NORMS_AROUND,
    shape=GEMMA_SHAPE,
    keys=GEMMA_KEYS,
    write=write,
    read=read_windows,
    buffers=BUFFERS,
)
