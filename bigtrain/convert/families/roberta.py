"""RoBERTa: a BERT whose positions begin after that of its padding token, and whose head has other names. XLM-RoBERTa is
of the same shape."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from bigtrain.config import ModelConfig
from bigtrain.convert.families.bert import ENDINGS, KEYS, SHAPE, body, both
from bigtrain.convert.family import Family
from bigtrain.convert.mapping import WHOLE
from bigtrain.errors import ConversionError


def _write(model: ModelConfig) -> dict[str, Any]:
    return {"pad_token_id": max(model.position_offset - 1, 0)}


def _read(config: Mapping[str, Any]) -> dict[str, Any]:
    if config["pad_token_id"] is None:
        raise ConversionError("config.json: pad_token_id is null, and a RoBERTa's positions begin after that number")
    return {"position_offset": config["pad_token_id"] + 1}


ROBERTA = Family(
    name="RoBERTa",
    model_type="roberta",
    architecture="RobertaForMaskedLM",
    weights={
        **body("roberta."),
        **both({"lm_head.dense": "lm_head.dense", "lm_head.layer_norm": "lm_head.layer_norm"}),
        "output_layer.weight": {"lm_head.decoder.weight": WHOLE},
        "output_layer.bias": {"lm_head.bias": WHOLE},
    },
    shape={**SHAPE, "hidden_act": "gelu"},  # the head has no other
    keys={ours: theirs for ours, theirs in KEYS.items() if ours != "hidden_act"},
    prefix="roberta.",
    heads=("lm_head.",),
    pooler="roberta.pooler.dense.weight",
    write=_write,
    read=_read,
    ignored=frozenset({"classifier_dropout"}),
    buffers=(r"roberta\.embeddings\.position_ids",),
    copies={"lm_head.decoder.bias": "lm_head.bias"},
    endings=ENDINGS,
)

XLM_ROBERTA = replace(ROBERTA, name="XLM-RoBERTa", model_type="xlm-roberta", architecture="XLMRobertaForMaskedLM")
