"""Qwen3: a Llama with norms of each query and key head."""

from bigtrain.convert.families import qwen2
from bigtrain.convert.families.llama import BUFFERS, KEYS, QK_NORMS, SHAPE, WEIGHTS
from bigtrain.convert.family import Family

QWEN3 = Family(
    name="Qwen3",
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    weights={**WEIGHTS, **QK_NORMS},
    shape={**SHAPE, "qk_norm": "head"},
    keys=KEYS,
    write=lambda model: {**qwen2.write(model), "head_dim": model.head_size},  # else it is 128
    read=qwen2.read,
    ignored=qwen2.IGNORED,
    buffers=BUFFERS,
)
