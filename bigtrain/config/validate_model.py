"""Rules between the options of the model alone: positions, windows and norms."""

from collections.abc import Iterator

from bigtrain.config.model import ModelConfig, RopeScalingConfig
from bigtrain.config.reference import any_of

_SCALING_KEYS = {  # what each kind needs, and what else it reads
    "linear": (["factor"], []),
    "llama3": (["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"], []),
    "yarn": (["factor"], ["original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor"]),
    "longrope": (["short_factor", "long_factor", "original_max_position_embeddings"], ["attention_factor"]),
}


def model_problems(model: ModelConfig) -> Iterator[str]:
    """Every broken rule."""
    yield from _learned(model)
    if model.position_embedding == "rope":
        yield from _rotary(model)
    yield from _windows(model)
    if model.qk_norm == "projection" and model.normalization == "layernorm":
        yield (
            "model.qk_norm=projection is an RMSNorm, but model.normalization is layernorm; set model.qk_norm=head or "
            "model.normalization=rmsnorm"
        )


def _learned(model: ModelConfig) -> Iterator[str]:
    if model.position_embedding != "learned":
        return
    given = {
        "partial_rotary_factor": model.partial_rotary_factor != 1,
        "rope_scaling": model.rope_scaling is not None,
        "rope_local_theta": model.rope_local_theta is not None,
    }
    if rotary := [f"model.{key}" for key, is_given in given.items() if is_given]:
        yield (
            f"{any_of(rotary, 'and')} {'is' if len(rotary) == 1 else 'are'} about rotary positions, but "
            "model.position_embedding is learned; set model.position_embedding=rope or leave them out"
        )
    if model.scale_embeddings:
        yield (
            "model.scale_embeddings is true and model.position_embedding is learned: no model scales learned "
            "positions; set model.scale_embeddings=false or model.position_embedding=rope"
        )


def _rotary(model: ModelConfig) -> Iterator[str]:
    size = model.rotary_size
    if model.partial_rotary_factor < 1 and (size % 2 or not size):
        yield (
            f"model.partial_rotary_factor ({model.partial_rotary_factor}) of the head size ({model.head_size}) is "
            f"{size}: rotary positions turn pairs; model.partial_rotary_factor={(size // 2 + 1) * 2 / model.head_size} "
            "would fit"
        )
    if model.rope_local_theta is not None and not any(model.windows):
        yield (
            f"model.rope_local_theta ({model.rope_local_theta}) is for layers with a sliding window, and there are "
            "none; set model.sliding_window or leave model.rope_local_theta out"
        )
    if model.rope_scaling is not None:
        yield from _scaling(model, model.rope_scaling)


def _scaling(model: ModelConfig, scaling: RopeScalingConfig) -> Iterator[str]:
    kind, prefix = scaling.rope_type, "model.rope_scaling"
    needed, read = _SCALING_KEYS[kind]
    if missing := [f"{prefix}.{key}" for key in needed if getattr(scaling, key) is None]:
        yield f"{prefix}.rope_type={kind} needs {any_of(missing, 'and')}"
        return
    for key, option in RopeScalingConfig.model_fields.items():
        if key not in ("rope_type", *needed, *read) and getattr(scaling, key) != option.default:
            yield f"{prefix}.{key} ({getattr(scaling, key)}) says nothing to {prefix}.rope_type={kind}; leave it out"
    for low, high in (("low_freq_factor", "high_freq_factor"), ("beta_slow", "beta_fast")):
        if low in (*needed, *read) and getattr(scaling, low) >= getattr(scaling, high):
            yield (
                f"{prefix}.{low} ({getattr(scaling, low)}) must be below {prefix}.{high} ({getattr(scaling, high)}): "
                "frequencies are scaled the more the lower they are"
            )
    original = scaling.original_max_position_embeddings
    if original is not None and original > model.max_position_embeddings:
        yield (
            f"{prefix}.original_max_position_embeddings ({original}) is above model.max_position_embeddings "
            f"({model.max_position_embeddings}), which is the length after scaling; swap or correct them"
        )
    for key in ("short_factor", "long_factor") if kind == "longrope" else ():
        if len(getattr(scaling, key)) != model.rotary_size // 2:
            yield (
                f"{prefix}.{key} has {len(getattr(scaling, key))} numbers for {model.rotary_size // 2} frequencies, "
                f"half of what is rotated of a head; give as many"
            )
    if model.rope_local_theta is not None and kind in ("yarn", "longrope"):
        yield (
            f"{prefix}.rope_type={kind} cannot be had with model.rope_local_theta: its factor of queries and keys "
            f"would be that of all layers; set {prefix}.rope_type=linear or leave model.rope_local_theta out"
        )


def _windows(model: ModelConfig) -> Iterator[str]:
    kinds = model.layer_types
    if kinds is not None and len(kinds) > model.num_hidden_layers:
        yield (
            f"model.layer_types has {len(kinds)} words for model.num_hidden_layers ({model.num_hidden_layers}); give "
            "one a layer, or fewer to have them repeated"
        )
    if kinds is not None and not kinds:
        yield "model.layer_types is empty; give at least one word, or leave it out"
    elif kinds is not None and "sliding_attention" in kinds and model.sliding_window is None:
        yield "model.layer_types has sliding_attention, but model.sliding_window says no size; give one"
    elif kinds is not None and "sliding_attention" not in kinds and model.sliding_window is not None:
        yield (
            f"model.sliding_window ({model.sliding_window}) is that of no layer: model.layer_types has no "
            "sliding_attention; leave one of the two out"
        )
