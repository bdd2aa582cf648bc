"""The oracle: plain PyTorch on `transformers`' own Llama, batches read straight with `pyarrow`.

Nothing of bigtrain is imported here, and the map from Hugging Face's weights to Megatron-core's is
written out by hand.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import torch
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM


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
    model: LlamaForCausalLM, tokens: torch.Tensor, recipe: Recipe, micro_batch_size: int
) -> list[tuple[float, float]]:
    """(loss, gradient norm before clipping) of each step."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=recipe.lr,
        betas=recipe.betas,
    )
    length, history = recipe.sequence_length, []
    for step in range(recipe.steps):
        rows = range(step * recipe.global_batch_size, (step + 1) * recipe.global_batch_size)
        windows = torch.stack([tokens[row * length : row * length + length + 1] for row in rows])
        total = 0.0
        for part in windows.split(micro_batch_size):
            logits = model(part[:, :-1]).logits
            loss = F.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten()) * len(part) / len(windows)
            loss.backward()
            total += loss.item()
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


def write_checkpoint(model: LlamaForCausalLM, model_section: dict[str, object], folder: Path) -> None:
    """The model as a bigtrain checkpoint of step 0, written with plain `torch.distributed.checkpoint`."""
    weights = megatron_weights(model)
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
        "files": {p.name: p.stat().st_size for p in folder.iterdir()},
    }
    (folder / "complete.json").write_text(json.dumps(marker))


def megatron_weights(model: LlamaForCausalLM) -> dict[str, torch.Tensor]:
    """Llama's weights under Megatron-core's global names, layers stacked along the first axis."""
    config = model.config
    groups, size = config.num_key_value_heads, config.hidden_size // config.num_attention_heads
    layers = model.model.layers

    def qkv(attention: torch.nn.Module) -> torch.Tensor:
        queries = attention.q_proj.weight.view(groups, -1, config.hidden_size)
        keys = attention.k_proj.weight.view(groups, size, config.hidden_size)
        values = attention.v_proj.weight.view(groups, size, config.hidden_size)
        return torch.cat([queries, keys, values], dim=1).reshape(-1, config.hidden_size)

    stacked = {
        "input_layernorm.weight": [layer.input_layernorm.weight for layer in layers],
        "self_attention.linear_qkv.weight": [qkv(layer.self_attn) for layer in layers],
        "self_attention.linear_proj.weight": [layer.self_attn.o_proj.weight for layer in layers],
        "pre_mlp_layernorm.weight": [layer.post_attention_layernorm.weight for layer in layers],
        "mlp.linear_fc1.weight": [torch.cat([x.mlp.gate_proj.weight, x.mlp.up_proj.weight]) for x in layers],
        "mlp.linear_fc2.weight": [layer.mlp.down_proj.weight for layer in layers],
    }
    weights = {f"decoder.layers.{name}": torch.stack(parts).detach() for name, parts in stacked.items()}
    weights["embedding.word_embeddings.weight"] = model.model.embed_tokens.weight.detach()
    weights["decoder.final_layernorm.weight"] = model.model.norm.weight.detach()
    if not config.tie_word_embeddings:
        weights["output_layer.weight"] = model.lm_head.weight.detach()
    return weights
