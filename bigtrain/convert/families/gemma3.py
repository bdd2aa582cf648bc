"""Gemma-3, its language model: a Gemma-2 with norms of queries and keys, and two bases of rotary frequencies."""

from collections.abc import Mapping
from typing import Any

from bigtrain.config import ModelConfig
from bigtrain.convert.families.gemma2 import GEMMA_KEYS, GEMMA_SHAPE, WEIGHTS_WITH_NORMS_AROUND, write
from bigtrain.convert.families.llama import BUFFERS, QK_NORMS
from bigtrain.convert.family import Family, read_rope_scaling, read_windows, write_rope_scaling


def _write(model: ModelConfig) -> dict[str, Any]:
    local = model.rope_theta if model.rope_local_theta is None else model.rope_local_theta
    return write(model) | write_rope_scaling(model) | {"rope_local_base_freq": local}


def _read(config: Mapping[str, Any]) -> dict[str, Any]:
    return read_windows(config) | read_rope_scaling(config) | {"rope_local_theta": config["rope_local_base_freq"]}


GEMMA3 = Family(
    name="Gemma-3",
    model_type="gemma3_text",
    architecture="Gemma3ForCausalLM",
    weights={**WEIGHTS_WITH_NORMS_AROUND, **QK_NORMS},
    shape={**GEMMA_SHAPE, "qk_norm": "head"},
    keys=GEMMA_KEYS,
    write=_write,
    read=_read,
    ignored=frozenset({"_sliding_window_pattern"}),  # said in layer_types
    buffers=BUFFERS,
)
