"""Mixtral: a Mistral whose feed-forward blocks are experts."""

from bigtrain.convert.families.llama import BUFFERS, KEYS, SHAPE, WEIGHTS
from bigtrain.convert.family import Family
from bigtrain.convert.mapping import GATE, UP, WHOLE

_FEED_FORWARD = "model.layers.{layer}.block_sparse_moe."

MIXTRAL = Family(
    name="Mixtral",
    model_type="mixtral",
    architecture="MixtralForCausalLM",
    weights={
        **WEIGHTS,
        "decoder.layers.mlp.router.weight": {_FEED_FORWARD + "gate.weight": WHOLE},
        "decoder.layers.mlp.experts.experts.linear_fc1.weight": {
            _FEED_FORWARD + "experts.{expert}.w1.weight": GATE,
            _FEED_FORWARD + "experts.{expert}.w3.weight": UP,
        },
        "decoder.layers.mlp.experts.experts.linear_fc2.weight": {_FEED_FORWARD + "experts.{expert}.w2.weight": WHOLE},
    },
    shape={**SHAPE, "norm_topk_prob": True, "router_z_loss_coef": 0.0},
    keys={
        **KEYS,
        "sliding_window": "sliding_window",
        "num_experts": "num_local_experts",
        "num_experts_per_tok": "num_experts_per_tok",
        "router_aux_loss_coef": "router_aux_loss_coef",
    },
    ignored=frozenset({"output_router_logits", "router_jitter_noise"}),  # of training alone
    buffers=BUFFERS,
)
