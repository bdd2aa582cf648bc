"""Rules of `model.architecture`: which options each knows, and what cannot be had with it."""

from collections.abc import Iterator, Mapping, Sequence

from bigtrain.config.model import ModelConfig
from bigtrain.config.schema import Config, DataConfig

_OF_BERT = {
    "model": ("position_offset", "type_vocab_size", "add_pooling_layer"),
    "data": ("mlm_probability", "whole_word_masking"),
}
_OF_GPT = {
    "model": (
        "num_experts",
        "sliding_window",
        "layer_types",
        "qk_norm",
        "norm_placement",
        "zero_centered_norm",
        "parallel_residual",
        "attn_logit_softcapping",
        "final_logit_softcapping",
        "query_pre_attn_scalar",
        "scale_embeddings",
    ),
    "data": ("fim_rate", "mask_document_boundaries"),
}


def architecture_problems(config: Config) -> Iterator[str]:
    """A message for each rule that is broken."""
    if config.model.architecture != "gpt":
        yield from _only_for("gpt", _OF_GPT, config)
    if config.model.architecture == "bert":
        yield from _bert(config)
        return
    if config.data.sentence_objective != "none":
        yield f"data.sentence_objective={config.data.sentence_objective} is for model.architecture=bert"
    yield from _only_for("bert", _OF_BERT, config)


def _only_for(architecture: str, keys: Mapping[str, Sequence[str]], config: Config) -> Iterator[str]:
    """Options that have another value than their default, and mean nothing to the run's architecture."""
    for section, names in keys.items():
        of_section: ModelConfig | DataConfig = getattr(config, section)
        for name in names:
            value = getattr(of_section, name)
            if value != type(of_section).model_fields[name].default:
                yield f"{section}.{name} ({value}) is for model.architecture={architecture}; leave it out"


def _bert(config: Config) -> Iterator[str]:
    m, d, p, length = config.model, config.data, config.parallel, config.training.sequence_length
    if m.position_embedding == "relative":
        yield (
            "model.position_embedding is relative, which is T5's, and BERT's positions are learned or rotary; set "
            "model.position_embedding=learned, or rope"
        )
    if m.position_embedding == "rope" and m.position_offset:
        yield (
            f"model.position_offset ({m.position_offset}) is a row of learned positions, and "
            "model.position_embedding is rope; leave the former out"
        )
    if p.context > 1:
        yield (
            f"parallel.context ({p.context}) cuts sequences so that a causal mask is shared fairly, and BERT has none; "
            "set parallel.context=1"
        )
    if d.packing in ("documents", "best_fit"):
        yield (
            f"data.packing={d.packing} keeps documents of a sample apart, which BERT's attention does not; set "
            "data.packing=contiguous, or padded for one document in each"
        )
    sentences = d.sentence_objective != "none"
    if sentences != m.add_pooling_layer and config.finetune.task is None:
        remedy = "set model.add_pooling_layer=true" if sentences else "leave the latter out, or set the former to next"
        yield (
            f"data.sentence_objective is {d.sentence_objective} and model.add_pooling_layer "
            f"{str(m.add_pooling_layer).lower()}: that objective is learned through that layer, and it through the "
            f"objective alone; {remedy}"
        )
    if sentences and m.type_vocab_size < 2:
        yield f"model.type_vocab_size ({m.type_vocab_size}) does not tell the two segments apart; set it to 2"
    least = 5 if sentences else 3
    if length < least:
        yield (
            f"training.sequence_length ({length}) has no room for "
            f"{'two segments with their' if sentences else 'a token with its'} special tokens; it needs {least}"
        )
