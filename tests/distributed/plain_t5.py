"""The oracle for an encoder and a decoder: `transformers`' own T5, on batches that are given.

Nothing of bigtrain is imported here, and the map from Hugging Face's weights to Megatron-core's is
written out by hand.
"""

from collections.abc import Sequence
from typing import NamedTuple

import plain
import torch
import torch.nn.functional as F
from transformers import T5Config, T5ForConditionalGeneration

SHAPES = {"v1.0": (3, 2), "v1.1": (2, 4)}
"""Layers of the encoder and of the decoder: relu and tied embeddings, or gated gelu and an output layer of its own."""
HEADS, HEAD_SIZE = 4, 24


class Pair(NamedTuple):
    """A global batch."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    decoder_input_ids: torch.Tensor
    labels: torch.Tensor
    loss_mask: torch.Tensor


def t5(vocab_size: int, version: str, dropout: float = 0.0) -> T5ForConditionalGeneration:
    """A tiny random T5 in float32, the same at every call."""
    torch.manual_seed(13)
    layers, decoder_layers = SHAPES[version]
    old = version == "v1.0"
    config = T5Config(
        vocab_size=vocab_size,
        d_model=64,
        d_kv=HEAD_SIZE,
        d_ff=96,
        num_layers=layers,
        num_decoder_layers=decoder_layers,
        num_heads=HEADS,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=20,
        dropout_rate=dropout,
        feed_forward_proj="relu" if old else "gated-gelu",
        tie_word_embeddings=old,
        decoder_start_token_id=0,
        use_cache=False,
    )
    model = T5ForConditionalGeneration(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:  # exactly one would hide a norm that is not applied
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif "relative" in name:  # so large that positions matter
                parameter.copy_(torch.randn_like(parameter))
            elif "lm_head" in name:  # 1 in `transformers`: a loss above 20, whose rounding is as large
                parameter.mul_(0.1)
    return model


def train_plainly(
    model: T5ForConditionalGeneration, steps: Sequence[Pair], recipe: plain.Recipe, micro_batch_size: int
) -> list[tuple[float, float]]:
    """(loss, gradient norm before clipping) of each step."""

    def backward(step: int) -> float:
        whole, total = steps[step], 0.0
        for part in zip(*(tensor.split(micro_batch_size) for tensor in whole), strict=True):
            ids, mask, decoder_ids, labels, loss_mask = part
            logits = model(input_ids=ids, attention_mask=mask, decoder_input_ids=decoder_ids).logits
            losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
            loss = (losses * loss_mask.flatten()).sum() / whole.loss_mask.sum()
            loss.backward()
            total += loss.item()
        return total

    return plain.descend(model, recipe, backward)


def megatron_weights(model: T5ForConditionalGeneration) -> dict[str, torch.Tensor]:
    """A model's weights under Megatron-core's global names, layers of a stack along the first axis."""
    weights = {"embedding.word_embeddings.weight": model.shared.weight}
    if not model.config.tie_word_embeddings:
        weights["output_layer.weight"] = model.lm_head.weight
    for name, stack in (("encoder", model.encoder), ("decoder", model.decoder)):
        layers = [_layer(list(block.layer), name) for block in stack.block]
        for key in layers[0]:
            weights[f"{name}.layers.{key}"] = torch.stack([layer[key] for layer in layers])
        weights[f"{name}.final_layernorm.weight"] = stack.final_layer_norm.weight
        attention = stack.block[0].layer[0].SelfAttention
        weights[f"{name}.relative_attention_bias.weight"] = attention.relative_attention_bias.weight
    return {key: value.detach() for key, value in weights.items()}


def _layer(parts: list[torch.nn.Module], stack: str) -> dict[str, torch.Tensor]:
    attention, feed_forward = parts[0].SelfAttention, parts[-1].DenseReluDense
    layer = {
        "input_layernorm.weight": parts[0].layer_norm.weight,
        "self_attention.linear_qkv.weight": _by_head(attention, "qkv"),
        "self_attention.linear_proj.weight": attention.o.weight,
        "pre_mlp_layernorm.weight": parts[-1].layer_norm.weight,
        "mlp.linear_fc1.weight": torch.cat([getattr(feed_forward, n).weight for n in _inner(feed_forward)]),
        "mlp.linear_fc2.weight": feed_forward.wo.weight,
    }
    if stack == "decoder":
        across = parts[1].EncDecAttention
        layer |= {
            "pre_cross_attn_layernorm.weight": parts[1].layer_norm.weight,
            "cross_attention.linear_q.weight": across.q.weight,
            "cross_attention.linear_kv.weight": _by_head(across, "kv"),
            "cross_attention.linear_proj.weight": across.o.weight,
        }
    return layer


def _inner(feed_forward: torch.nn.Module) -> list[str]:
    return ["wi_0", "wi_1"] if hasattr(feed_forward, "wi_0") else ["wi"]


def _by_head(attention: torch.nn.Module, names: str) -> torch.Tensor:
    """Of each head the rows of one matrix after the other."""
    matrices = [getattr(attention, name).weight.view(HEADS, HEAD_SIZE, -1) for name in names]
    return torch.cat(matrices, dim=1).flatten(0, 1)
