"""The oracle: plain PyTorch on `transformers`' own Llama, batches read straight with `pyarrow`.

Nothing of bigtrain is imported here, and the map from Hugging Face's weights to Megatron-core's is
written out by hand.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel


@dataclass(frozen=True)
class Recipe:
    """What both sides train."""

    steps: int = 20
    global_batch_size: int = 8
    sequence_length: int = 64
    lr: float = 1e-3
    warmup_steps: int = 4
    min_lr_ratio: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    max_grad_norm: float = 1.0

    def sections(self, dataset: Path, **training: Any) -> dict[str, Any]:
        """The same as sections of our configuration."""
        return {
            "data": {"train": str(dataset / "train"), "shuffle": False},
            "optimizer": {
                "lr": self.lr,
                "betas": list(self.betas),
                "weight_decay": self.weight_decay,
                "max_grad_norm": self.max_grad_norm,
            },
            "schedule": {"warmup_steps": self.warmup_steps, "min_lr_ratio": self.min_lr_ratio},
            "training": {
                "output_dir": str(dataset / "unused"),
                "steps": self.steps,
                "global_batch_size": self.global_batch_size,
                "micro_batch_size": 2,
                "sequence_length": self.sequence_length,
                "precision": "fp32",
                **training,
            },
        }


def llama(vocab_size: int, tied: bool) -> LlamaForCausalLM:
    """A tiny random Llama in float32, the same at every call."""
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        intermediate_size=128,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        rms_norm_eps=1e-5,
        attention_dropout=0.0,
        use_cache=False,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():  # norms of exactly one would hide a norm that is not applied
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def read_tokens(dataset: Path) -> torch.Tensor:
    """The whole token stream of a dataset, in order."""
    names = [shard["file"] for shard in json.loads((dataset / "dataset.json").read_text())["shards"]]
    tables = [pa.ipc.open_file(pa.memory_map(str(dataset / name))).read_all() for name in names]
    flat = [table.column("tokens").combine_chunks().values.to_numpy() for table in tables]
    return torch.cat([torch.from_numpy(part.astype("int64")) for part in flat])


def train_plainly(
    model: PreTrainedModel,
    tokens: torch.Tensor,
    recipe: Recipe,
    micro_batch_size: int,
    add_to_loss: Callable[[Any, int], torch.Tensor] = lambda outputs, sequences: torch.zeros(()),
) -> list[tuple[float, float]]:
    """(loss, gradient norm before clipping) of each step.

    What `add_to_loss` makes of the model's outputs for so many sequences is learned from as well, and not in the
    loss that is told.
    """
    length = recipe.sequence_length

    def backward(step: int) -> float:
        rows = range(step * recipe.global_batch_size, (step + 1) * recipe.global_batch_size)
        windows = torch.stack([tokens[row * length : row * length + length + 1] for row in rows])
        total = 0.0
        for part in windows.split(micro_batch_size):
            outputs = model(part[:, :-1])
            loss = F.cross_entropy(outputs.logits.flatten(0, 1), part[:, 1:].flatten())
            share = len(part) / len(windows)
            ((loss + add_to_loss(outputs, len(part))) * share).backward()
            total += loss.item() * share
        return total

    return descend(model, recipe, backward)


def descend(model: PreTrainedModel, recipe: Recipe, backward: Callable[[int], float]) -> list[tuple[float, float]]:
    """(loss, gradient norm before clipping) of each step; `backward` makes its gradients and gives the loss."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=recipe.lr,
        betas=recipe.betas,
    )
    history = []
    for step in range(recipe.steps):
        total = backward(step)
        # `clip_grad_norm_` sums a large embedding's squares in float32, which is off by 1e-5 here.
        norm = sum(p.grad.double().square().sum() for p in model.parameters()).sqrt()
        torch.nn.utils.clip_grads_with_norm_(model.parameters(), recipe.max_grad_norm, norm.float())
        for group in optimizer.param_groups:
            group["lr"] = cosine(step + 1, recipe)
        optimizer.step()
        optimizer.zero_grad()
        history.append((total, norm.item()))
    return history


def cosine(number: int, recipe: Recipe) -> float:
    """Learning rate of step `number`, counted from 1."""
    if number <= recipe.warmup_steps:
        return recipe.lr * number / recipe.warmup_steps
    done = (number - recipe.warmup_steps) / (recipe.steps - recipe.warmup_steps)
    low = recipe.lr * recipe.min_lr_ratio
    return low + (recipe.lr - low) * 0.5 * (1 + math.cos(math.pi * done))


def write_checkpoint(
    weights: dict[str, torch.Tensor],
    model_section: dict[str, object],
    folder: Path,
    trained: dict[str, Any] | None = None,
) -> None:
    """Weights as a bigtrain checkpoint of step 0, written with plain `torch.distributed.checkpoint`."""
    state = {f"model.{key}": value for key, value in weights.items()}
    for moment in ("exp_avg", "exp_avg_sq"):
        state |= {f"optimizer.{moment}.{key}": torch.zeros_like(value) for key, value in weights.items()}
    dcp.save(state, checkpoint_id=folder, no_dist=True)
    marker = {
        "format_version": 1,
        "step": 0,
        "position": 0,
        "tokens": 0,
        "adam_step": 0,
        "model": model_section,
        "layout": {},
        "data": {},
        "trained": trained or {},
        "files": {p.name: p.stat().st_size for p in folder.iterdir()},
    }
    (folder / "complete.json").write_text(json.dumps(marker))


def megatron_weights(
    model: PreTrainedModel, feed_forward: Callable[[torch.nn.Module], dict[str, torch.Tensor]] | None = None
) -> dict[str, torch.Tensor]:
    """A model's weights under Megatron-core's global names, layers stacked along the first axis.

    `feed_forward` names those of a layer's feed-forward part, where they are not Llama's.
    """
    config = model.config
    groups, size = config.num_key_value_heads, config.hidden_size // config.num_attention_heads

    def qkv(attention: torch.nn.Module) -> torch.Tensor:
        queries = attention.q_proj.weight.view(groups, -1, config.hidden_size)
        keys = attention.k_proj.weight.view(groups, size, config.hidden_size)
        values = attention.v_proj.weight.view(groups, size, config.hidden_size)
        return torch.cat([queries, keys, values], dim=1).reshape(-1, config.hidden_size)

    layers = [
        {
            "input_layernorm.weight": layer.input_layernorm.weight,
            "self_attention.linear_qkv.weight": qkv(layer.self_attn),
            "self_attention.linear_proj.weight": layer.self_attn.o_proj.weight,
            "pre_mlp_layernorm.weight": layer.post_attention_layernorm.weight,
            **(feed_forward or llama_feed_forward)(layer),
        }
        for layer in model.model.layers
    ]
    weights = {f"decoder.layers.{name}": torch.stack([layer[name] for layer in layers]).detach() for name in layers[0]}
    weights["embedding.word_embeddings.weight"] = model.model.embed_tokens.weight.detach()
    weights["decoder.final_layernorm.weight"] = model.model.norm.weight.detach()
    if not config.tie_word_embeddings:
        weights["output_layer.weight"] = model.lm_head.weight.detach()
    return weights


def llama_feed_forward(layer: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The gate lies above the up projection."""
    return {
        "mlp.linear_fc1.weight": torch.cat([layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight]),
        "mlp.linear_fc2.weight": layer.mlp.down_proj.weight,
    }


def differences(history: Any, reference: Any) -> list[float]:
    """The larger relative difference of loss and gradient norm, step by step."""
    pairs = zip(history, reference, strict=True)
    return [max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True)) for ours, theirs in pairs]
