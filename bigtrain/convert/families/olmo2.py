"""OLMo-2: a Llama with its norms after each sub-layer, and norms of all queries and all keys together."""

from bigtrain.convert.families.llama import BUFFERS, KEYS, QK_NORMS, SHAPE, WEIGHTS
from bigtrain.convert.family import Family, read_rope_scaling, write_rope_scaling
from bigtrain.convert.mapping import WHOLE

_LAYER = "model.layers.{layer}."
_BEFORE = ("decoder.layers.input_layernorm.weight", "decoder.layers.pre_mlp_layernorm.weight")

OLMO2 = Family(
    name="OLMo-2",
    model_type="olmo2",
    architecture="Olmo2ForCausalLM",
    weights={
        **{ours: theirs for ours, theirs in WEIGHTS.items() if ours not in _BEFORE},
        **QK_NORMS,
        "decoder.layers.post_self_attn_layernorm.weight": {_LAYER + "post_attention_layernorm.weight": WHOLE},
        "decoder.layers.post_mlp_layernorm.weight": {_LAYER + "post_feedforward_layernorm.weight": WHOLE},
    },
    shape={**SHAPE, "norm_placement": "after", "qk_norm": "projection"},
    keys=KEYS,
    write=write_rope_scaling,
    read=read_rope_scaling,
    buffers=BUFFERS,
)
