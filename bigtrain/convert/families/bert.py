"""BERT, with the head that it was pretrained with, and that of the sentence objective where it has one."""

from collections.abc import Mapping
from typing import Any

from bigtrain.config import ModelConfig
from bigtrain.convert.family import Family
from bigtrain.convert.mapping import KEY, QUERY, VALUE, WHOLE, Cut, WeightMap

ATTENTION = {"query": QUERY, "key": KEY, "value": VALUE}


def body(prefix: str, attention: Mapping[str, Cut] = ATTENTION) -> WeightMap:
    """All below the heads, and the pooler; `prefix` is how the names begin, `attention` says what rows of the joint
    matrix its modules are."""
    layer = prefix + "encoder.layer.{layer}."
    embeddings = {"word_embeddings": "word", "position_embeddings": "position", "token_type_embeddings": "tokentype"}
    modules = {
        "embedding.layer_norm": "embeddings.LayerNorm",
        "encoder.layers.self_attention.linear_proj": "encoder.layer.{layer}.attention.output.dense",
        "encoder.layers.self_attn_bda.norm": "encoder.layer.{layer}.attention.output.LayerNorm",
        "encoder.layers.mlp.linear_fc1": "encoder.layer.{layer}.intermediate.dense",
        "encoder.layers.mlp.linear_fc2": "encoder.layer.{layer}.output.dense",
        "encoder.layers.mlp_bda.norm": "encoder.layer.{layer}.output.LayerNorm",
        "pooler.dense": "pooler.dense",
    }
    return {
        **{
            f"embedding.{ours}_embeddings.weight": {f"{prefix}embeddings.{theirs}.weight": WHOLE}
            for theirs, ours in embeddings.items()
        },
        **both({ours: prefix + theirs for ours, theirs in modules.items()}),
        **{
            f"encoder.layers.self_attention.linear_qkv.{kind}": {
                f"{layer}attention.self.{part}.{kind}": cut for part, cut in attention.items()
            }
            for kind in ("weight", "bias")
        },
    }


def both(modules: dict[str, str]) -> WeightMap:
    """The weight and the bias of modules."""
    return {
        f"{ours}.{kind}": {f"{theirs}.{kind}": WHOLE} for ours, theirs in modules.items() for kind in ("weight", "bias")
    }


HEAD: WeightMap = {
    **both(
        {
            "lm_head.dense": "cls.predictions.transform.dense",
            "lm_head.layer_norm": "cls.predictions.transform.LayerNorm",
        }
    ),
    "output_layer.weight": {"cls.predictions.decoder.weight": WHOLE},
    "output_layer.bias": {"cls.predictions.bias": WHOLE},
}
"""What predicts tokens."""
COPIES = {"cls.predictions.decoder.bias": "cls.predictions.bias"}
SHAPE = {
    "architecture": "bert",
    "position_embedding": "learned",
    "normalization": "layernorm",
    "gated_mlp": False,
    "linear_bias": True,
    "tie_word_embeddings": True,
}
KEYS = {
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
}
ENDINGS = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
"""As the first BERTs, which came from TensorFlow, are still published."""


def _write(model: ModelConfig) -> dict[str, Any]:
    return {"architectures": ["BertForPreTraining"]} if model.add_pooling_layer else {}


def _read(config: Mapping[str, Any]) -> dict[str, Any]:
    return {"add_pooling_layer": config.get("architectures") == ["BertForPreTraining"]}


BERT = Family(
    name="BERT",
    model_type="bert",
    architecture="BertForMaskedLM",
    weights={**body("bert."), **HEAD, **both({"binary_head": "cls.seq_relationship"})},
    shape=SHAPE,
    keys=KEYS,
    prefix="bert.",
    heads=("cls.predictions.", "cls.seq_relationship."),
    pooler="bert.pooler.dense.weight",
    write=_write,
    read=_read,
    ignored=frozenset({"classifier_dropout"}),
    buffers=(r"bert\.embeddings\.position_ids",),
    copies=COPIES,
    endings=ENDINGS,
)
