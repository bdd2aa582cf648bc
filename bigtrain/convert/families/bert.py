"""BERT, with the head that it was pretrained with, and that of the sentence objective where it has one."""

from collections.abc import Mapping
from typing import Any

from bigtrain.config import ModelConfig
from bigtrain.convert.family import Family
from bigtrain.convert.mapping import KEY, QUERY, VALUE, WHOLE, Cut

_BODY = {
    "embedding.word_embeddings.weight": {"bert.embeddings.word_embeddings.weight": WHOLE},
    "embedding.position_embeddings.weight": {"bert.embeddings.position_embeddings.weight": WHOLE},
    "embedding.tokentype_embeddings.weight": {"bert.embeddings.token_type_embeddings.weight": WHOLE},
    "output_layer.weight": {"cls.predictions.decoder.weight": WHOLE},
    "output_layer.bias": {"cls.predictions.bias": WHOLE},
}
_LAYER = "bert.encoder.layer.{layer}."


def _both(kind: str) -> dict[str, dict[str, Cut]]:
    """What is there as `weight` and as `bias`."""
    attention = _LAYER + "attention.self."
    parts = {"query": QUERY, "key": KEY, "value": VALUE}
    return {
        f"embedding.layer_norm.{kind}": {f"bert.embeddings.LayerNorm.{kind}": WHOLE},
        f"encoder.layers.self_attention.linear_qkv.{kind}": {
            f"{attention}{part}.{kind}": cut for part, cut in parts.items()
        },
        f"encoder.layers.self_attention.linear_proj.{kind}": {_LAYER + f"attention.output.dense.{kind}": WHOLE},
        f"encoder.layers.self_attn_bda.norm.{kind}": {_LAYER + f"attention.output.LayerNorm.{kind}": WHOLE},
        f"encoder.layers.mlp.linear_fc1.{kind}": {_LAYER + f"intermediate.dense.{kind}": WHOLE},
        f"encoder.layers.mlp.linear_fc2.{kind}": {_LAYER + f"output.dense.{kind}": WHOLE},
        f"encoder.layers.mlp_bda.norm.{kind}": {_LAYER + f"output.LayerNorm.{kind}": WHOLE},
        f"lm_head.dense.{kind}": {f"cls.predictions.transform.dense.{kind}": WHOLE},
        f"lm_head.layer_norm.{kind}": {f"cls.predictions.transform.LayerNorm.{kind}": WHOLE},
        f"pooler.dense.{kind}": {f"bert.pooler.dense.{kind}": WHOLE},
        f"binary_head.{kind}": {f"cls.seq_relationship.{kind}": WHOLE},
    }


def _write(model: ModelConfig) -> dict[str, Any]:
    return {"architectures": ["BertForPreTraining"]} if model.add_pooling_layer else {}


def _read(config: Mapping[str, Any]) -> dict[str, Any]:
    pooled = config.get("architectures") in (["BertForPreTraining"], ["BertModel"])
    return {"add_pooling_layer": True} if pooled else {}


BERT = Family(
    name="BERT",
    model_type="bert",
    architecture="BertForMaskedLM",
    weights=_BODY | _both("weight") | _both("bias"),
    shape={
        "architecture": "bert",
        "position_embedding": "learned",
        "normalization": "layernorm",
        "gated_mlp": False,
        "linear_bias": True,
        "tie_word_embeddings": True,
    },
    keys={
        "vocab_size": "vocab_size",
        "hidden_size": "hidden_size",
        "intermediate_size": "intermediate_size",
        "num_hidden_layers": "num_hidden_layers",
        "num_attention_heads": "num_attention_heads",
        "max_position_embeddings": "max_position_embeddings",
        "type_vocab_size": "type_vocab_size",
        "hidden_act": "hidden_act",
        "norm_eps": "layer_norm_eps",
        "initializer_range": "initializer_range",
        "hidden_dropout": "hidden_dropout_prob",
        "attention_dropout": "attention_probs_dropout_prob",
    },
    prefix="bert.",
    head="cls.",
    write=_write,
    read=_read,
    ignored=frozenset({"classifier_dropout"}),
    buffers=(r"bert\.embeddings\.position_ids", r"cls\.predictions\.decoder\.bias"),  # the latter is another's name
)
