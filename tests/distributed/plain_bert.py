"""The oracle of BERT: plain PyTorch on `transformers`' own, on batches that are given as tensors.

Nothing of bigtrain is imported here, and the map from Hugging Face's weights to Megatron-core's is written out by hand.
"""

from typing import Any

import plain
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    PretrainedConfig,
    PreTrainedModel,
    RobertaConfig,
    RobertaForMaskedLM,
    RoFormerConfig,
    RoFormerForMaskedLM,
)

Step = dict[str, Tensor]
"""A global batch in the words of `transformers`; -100 is no target."""


SHAPE = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "intermediate_size": 128,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
POSITIONS = 64


def bert(vocab_size: int, pad_id: int, sentences: bool) -> PreTrainedModel:
    """A tiny random BERT in float32, the same at every call; with `sentences` the one that also learns from these."""
    config = BertConfig(**SHAPE, vocab_size=vocab_size, max_position_embeddings=POSITIONS, pad_token_id=pad_id)
    return _random(BertForPreTraining if sentences else BertForMaskedLM, config)


def roberta(vocab_size: int, pad_id: int) -> PreTrainedModel:
    """The same of a RoBERTa, whose positions begin after `pad_id`."""
    config = RobertaConfig(
        **SHAPE,
        vocab_size=vocab_size,
        max_position_embeddings=POSITIONS + pad_id + 1,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        pad_token_id=pad_id,
    )
    return _random(RobertaForMaskedLM, config)


def roformer(vocab_size: int, pad_id: int) -> PreTrainedModel:
    """The same of a RoFormer, whose positions turn queries and keys."""
    config = RoFormerConfig(
        **SHAPE,
        vocab_size=vocab_size,
        max_position_embeddings=POSITIONS,
        initializer_range=0.1,  # with less, attention looks everywhere alike, and positions hardly matter
        pad_token_id=pad_id,
    )
    return _random(RoFormerForMaskedLM, config)


def _random(kind: type[PreTrainedModel], config: PretrainedConfig) -> PreTrainedModel:
    torch.manual_seed(7)
    model = kind(config)
    with torch.no_grad():  # norms of exactly one and biases of exactly zero would hide that they are not applied
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def train_plainly(
    model: PreTrainedModel, steps: list[Step], recipe: plain.Recipe, micro_batch_size: int | None = None
) -> list[tuple[float, float]]:
    """(loss, gradient norm before clipping) of each step: with the model's own loss, or the same summed over parts."""
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.ndim > 1]
    vectors = [p for p in trained if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=recipe.lr,
        betas=recipe.betas,
    )
    history = []
    for number, step in enumerate(steps, 1):
        losses = [model(**step).loss] if micro_batch_size is None else parts_of_loss(model, step, micro_batch_size)
        for loss in losses:
            loss.backward()
        norm = sum(p.grad.double().square().sum() for p in trained).sqrt()
        torch.nn.utils.clip_grads_with_norm_(trained, recipe.max_grad_norm, norm.float())
        for group in optimizer.param_groups:
            group["lr"] = plain.cosine(number, recipe)
        optimizer.step()
        optimizer.zero_grad()
        history.append((sum(loss.item() for loss in losses), norm.item()))
    return history


def parts_of_loss(model: PreTrainedModel, step: Step, size: int) -> list[Tensor]:
    """The loss as a sum over parts of `size` sequences."""
    hidden, found = (step["labels"] >= 0).sum(), []
    labels = {name: step[name] for name in ("labels", "next_sentence_label") if name in step}
    inputs = {name: value for name, value in step.items() if name not in labels}
    for at in range(0, len(step["labels"]), size):
        part = slice(at, at + size)
        outputs: Any = model(**{name: value[part] for name, value in inputs.items()})
        logits = outputs.prediction_logits if "next_sentence_label" in labels else outputs.logits
        loss = F.cross_entropy(logits.flatten(0, 1), labels["labels"][part].flatten(), reduction="sum") / hidden
        if "next_sentence_label" in labels:
            told = labels["next_sentence_label"]
            loss = loss + F.cross_entropy(outputs.seq_relationship_logits, told[part], reduction="sum") / len(told)
        found.append(loss)
    return found


def megatron_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """A model's weights under Megatron-core's global names, layers stacked along the first axis."""
    config, embeddings, head = model.config, model.bert.embeddings, model.cls.predictions
    heads, size = config.num_attention_heads, config.hidden_size // config.num_attention_heads

    def qkv(attention: torch.nn.Module, kind: str) -> Tensor:
        parts = [getattr(layer, kind) for layer in (attention.query, attention.key, attention.value)]
        return torch.stack([part.unflatten(0, (heads, size)) for part in parts], dim=1).flatten(0, 2)

    weights = {
        "embedding.word_embeddings.weight": embeddings.word_embeddings.weight,
        "embedding.position_embeddings.weight": embeddings.position_embeddings.weight,
        "embedding.tokentype_embeddings.weight": embeddings.token_type_embeddings.weight,
        "output_layer.bias": head.bias,
    }
    for kind in ("weight", "bias"):
        layers = [
            {
                "self_attention.linear_qkv": qkv(layer.attention.self, kind),
                "self_attention.linear_proj": getattr(layer.attention.output.dense, kind),
                "self_attn_bda.norm": getattr(layer.attention.output.LayerNorm, kind),
                "mlp.linear_fc1": getattr(layer.intermediate.dense, kind),
                "mlp.linear_fc2": getattr(layer.output.dense, kind),
                "mlp_bda.norm": getattr(layer.output.LayerNorm, kind),
            }
            for layer in model.bert.encoder.layer
        ]
        for name in layers[0]:
            weights[f"encoder.layers.{name}.{kind}"] = torch.stack([layer[name] for layer in layers])
        weights[f"embedding.layer_norm.{kind}"] = getattr(embeddings.LayerNorm, kind)
        weights[f"lm_head.dense.{kind}"] = getattr(head.transform.dense, kind)
        weights[f"lm_head.layer_norm.{kind}"] = getattr(head.transform.LayerNorm, kind)
        if model.bert.pooler is not None:
            weights[f"pooler.dense.{kind}"] = getattr(model.bert.pooler.dense, kind)
            weights[f"binary_head.{kind}"] = getattr(model.cls.seq_relationship, kind)
    return {name: weight.detach() for name, weight in weights.items()}
