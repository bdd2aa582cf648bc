"""A configuration made small enough to try in seconds, with everything kept that a layout could break."""

from typing import Any

from bigtrain.config import Config, ModelConfig

HEAD_SIZE = 16
VOCABULARY = 128
"""Rows a process at most."""
TOKENS = 16
"""Of a sequence, a process at most."""


def shrunken(config: Config, world_size: int, steps: int, precision: str) -> Config:
    """The same kinds of layer, ties, norms, optimizer and recomputation, at a fraction of the size.

    Dropout is off: its random numbers follow the layout. Each process has at least two micro-batches of one
    sequence, so that gradients are accumulated everywhere.

    Args:
        config: The user's.
        world_size: The largest number of processes that is to share it.
        steps: Of the whole run.
        precision: `fp32` or `bf16`.
    """
    length = min(config.training.sequence_length, TOKENS * world_size)
    training = {
        "steps": steps,
        "global_batch_size": 2 * world_size,
        "micro_batch_size": 1,
        "sequence_length": length,
        "precision": precision,
        "validation_interval": 0,
        "validation_samples": 0,
    }
    schedule = {"warmup_steps": 0, "decay_steps": steps if config.schedule.name == "wsd" else 0}
    return config.model_copy(
        update={
            "model": config.model.model_copy(update=_shape(config.model, world_size, length)),
            "training": config.training.model_copy(update=training),
            "schedule": config.schedule.model_copy(update=schedule),
            "data": config.data.model_copy(update=_data(config)),
        }
    )


def _data(config: Config) -> dict[str, Any]:
    """Tokens are drawn, so that there is neither a mixture nor padding; documents stay apart where they are. And a
    second segment comes from the same sample, so that each is read once."""
    data = config.data
    return {
        "train": "drawn",
        "sources": {},
        "stages": [],
        "validation": None,
        "packing": "contiguous" if data.packing == "padded" else data.packing,
        "target_length": None,
        "sentence_objective": "order" if data.sentence_objective == "next" else data.sentence_objective,
    }


def _shape(model: ModelConfig, world_size: int, length: int) -> dict[str, Any]:
    kv_heads = _fewer(model.kv_heads, world_size)
    heads = kv_heads * min(2, model.num_attention_heads // model.kv_heads)
    odd_head = model.head_size * model.num_attention_heads != model.hidden_size
    return {
        "vocab_size": min(model.vocab_size, VOCABULARY * world_size),
        "hidden_size": heads * HEAD_SIZE,
        "num_hidden_layers": min(model.num_hidden_layers, max(4, world_size)),
        "num_decoder_layers": min(model.decoder_layers, max(3, world_size)) or None,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": HEAD_SIZE + 8 if odd_head else None,
        "intermediate_size": 2 * heads * HEAD_SIZE,
        **_experts(model, world_size),
        "sliding_window": model.sliding_window and max(1, min(model.sliding_window, length // 4)),
        "layer_types": model.layer_types and list(dict.fromkeys(model.layer_types)),  # every kind, in turns
        **_positions(model, HEAD_SIZE + 8 if odd_head else HEAD_SIZE, length),
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
    }


def _positions(model: ModelConfig, head_size: int, length: int) -> dict[str, Any]:
    """The same part of a head is rotated, by frequencies scaled from a length that is as much shorter."""
    rotated = max(2, int(head_size * model.partial_rotary_factor) // 2 * 2)
    most = length + model.position_offset
    shape: dict[str, Any] = {"max_position_embeddings": most, "partial_rotary_factor": rotated / head_size}
    scaling = model.rope_scaling
    if scaling is None:
        return shape
    smaller: dict[str, Any] = {
        key: [factors[i * len(factors) // (rotated // 2)] for i in range(rotated // 2)]
        for key in ("short_factor", "long_factor")
        if (factors := getattr(scaling, key)) is not None
    }
    if scaling.original_max_position_embeddings is not None:
        original = scaling.original_max_position_embeddings * length // model.max_position_embeddings
        smaller["original_max_position_embeddings"] = max(2, original)
    return {**shape, "rope_scaling": scaling.model_copy(update=smaller)}


def _experts(model: ModelConfig, world_size: int) -> dict[str, Any]:
    if model.num_experts is None:
        return {}
    experts = _fewer(model.num_experts, 2 * world_size)
    return {
        "num_experts": experts,
        "num_experts_per_tok": min(model.num_experts_per_tok, experts),
        "moe_intermediate_size": HEAD_SIZE if model.moe_intermediate_size else None,
    }


def _fewer(count: int, world_size: int) -> int:
    """The smallest divisor of `count` that every process of the world can have as large a part of."""
    return next(n for n in range(1, count + 1) if count % n == 0 and n >= min(count, world_size))
