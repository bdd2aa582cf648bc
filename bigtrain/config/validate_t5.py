"""Rules of T5's options, and of what a T5 cannot be."""

from collections.abc import Iterator

from bigtrain.config.schema import Config

_FIXED = {
    "model.position_embedding": "relative",
    "model.normalization": "rmsnorm",
    "model.linear_bias": False,
    "model.qkv_bias": False,
    "model.num_experts": None,
    "parallel.context": 1,
    "data.fim_rate": 0.0,
    "data.mask_document_boundaries": False,
}
"""Options with one value that a T5 can have."""


def t5_problems(config: Config) -> Iterator[str]:
    """A message for each rule that is broken."""
    if config.model.architecture == "t5":
        yield from _of_t5(config)
    else:
        yield from _of_others(config)


def _of_t5(config: Config) -> Iterator[str]:
    m, d, p = config.model, config.data, config.parallel
    for key, value in _FIXED.items():
        section, name = key.split(".")
        if (given := getattr(getattr(config, section), name)) != value:
            yield f"{key} is {_words(given)}, which model.architecture=t5 cannot have; set {key}={_words(value)}"
    if m.kv_heads != m.num_attention_heads:
        yield (
            f"model.num_key_value_heads ({m.kv_heads}) is not model.num_attention_heads ({m.num_attention_heads}): a "
            "T5 has as many of either; leave the former out"
        )
    if m.relative_attention_num_buckets < 4 or m.relative_attention_num_buckets % 2:
        yield (
            f"model.relative_attention_num_buckets ({m.relative_attention_num_buckets}) must be even and at least 4: "
            "half are for keys before the query, half for those after it, and of each half some are for one distance"
        )
    elif m.relative_attention_max_distance <= m.relative_attention_num_buckets // 2:
        yield (
            f"model.relative_attention_max_distance ({m.relative_attention_max_distance}) must be above half of "
            f"model.relative_attention_num_buckets ({m.relative_attention_num_buckets}), each of which has one distance"
        )
    if d.packing not in ("contiguous", "padded"):
        yield f"data.packing={d.packing} is not for model.architecture=t5; set data.packing=contiguous or padded"
    if d.target_length is not None and p.sequence and d.target_length % p.tensor:
        yield (
            f"data.target_length ({d.target_length}) is not divisible by parallel.tensor ({p.tensor}): with "
            f"parallel.sequence each process holds as many tokens; "
            f"data.target_length={-(-d.target_length // p.tensor) * p.tensor} would fit"
        )


def _of_others(config: Config) -> Iterator[str]:
    given = {
        "model.num_decoder_layers": config.model.num_decoder_layers,
        "model.position_embedding": "relative" if config.model.position_embedding == "relative" else None,
        "data.target_length": config.data.target_length,
        "data.objective": config.data.objective if config.data.objective != "span_corruption" else None,
    }
    for key, value in given.items():
        if value is not None:
            yield f"{key} ({value}) is for a T5; set model.architecture=t5 or leave {key} out"


def _words(value: object) -> str:
    """As it is written in YAML."""
    return "null" if value is None else str(value).lower()
