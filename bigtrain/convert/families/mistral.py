"""Mistral: a Llama whose tokens see a window."""

from bigtrain.convert.families.llama import BUFFERS, KEYS, SHAPE, WEIGHTS
from bigtrain.convert.family import Family

MISTRAL = Family(
    name="Mistral",
    model_type="mistral",
    architecture="MistralForCausalLM",
    weights=WEIGHTS,
    shape=SHAPE,
    keys={**KEYS, "sliding_window": "sliding_window"},
    write=lambda model: {"sliding_window": model.sliding_window},  # without one it is to be null
    buffers=BUFFERS,
)
