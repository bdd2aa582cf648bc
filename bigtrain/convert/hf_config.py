"""A Hugging Face configuration read as our shape of the model, with nothing in it that is not understood."""

import json
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from bigtrain.config import ModelConfig
from bigtrain.config.model import RopeScalingConfig
from bigtrain.convert.families import family_of_type
from bigtrain.convert.family import Family, read_rope_scaling
from bigtrain.errors import ConversionError

_MEANT = frozenset(
    {
        *("tie_word_embeddings", "is_decoder", "add_cross_attention", "chunk_size_feed_forward"),
        *("head_dim", "rope_scaling", "partial_rotary_factor", "sliding_window", "layer_types"),
    }
)
"""Keys that say what is computed though a family's class does not name them; others that it does not name say nothing,
or name tokens, labels, files and outputs."""
_OF_EVERY_FAMILY = frozenset({"use_cache"})
"""Keys that its class names, and that say nothing of the sort."""


def read_config(folder: Path) -> tuple[Family, ModelConfig, PretrainedConfig]:
    """The family, our shape of the model, and the configuration of a Hugging Face folder, its defaults applied.

    The shape is written as a configuration again and both are compared: a key that does not come back has a meaning
    that our model does not have.

    Raises:
        ConversionError: There is no `config.json`, its family is not supported, or a key of it is not understood.
    """
    path = folder / "config.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConversionError(f"{folder} holds no config.json: it is no Hugging Face model") from None
    except (OSError, ValueError) as error:
        raise ConversionError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("model_type"), str):
        raise ConversionError(f"{path} names no model_type")
    family = family_of_type(content["model_type"])
    if content.get("quantization_config") is not None:
        raise ConversionError(f"{path}: quantization_config is set; give the model as it was before it was quantized")
    config = _complete(content, path)
    model = family.model(config.to_dict())
    refuse_what_is_lost(family, config, _complete(family.config(model), path), path)
    return family, model, config


def refuse_what_is_lost(family: Family, config: PretrainedConfig, back: PretrainedConfig, path: Path) -> None:
    """Raises:
    ConversionError: A key of `config` is not the same in `back`, and it changes what the model computes.
    """
    named = type(config)().to_dict().keys() - PretrainedConfig().to_dict().keys() - _OF_EVERY_FAMILY
    known = (named | _MEANT) - family.ignored
    there, here = (_comparable(found.to_dict()) for found in (config, back))
    lost = [
        f"{key} is {there.get(key)!r}, and the {family.name} models here have {here.get(key)!r}"
        for key in sorted(known)
        if there.get(key) != here.get(key)
    ]
    if lost:
        raise ConversionError(f"{path}: {'; '.join(lost)}")


def _comparable(config: dict[str, Any]) -> dict[str, Any]:
    """What it says, in one of the ways to say it."""
    scaling = read_rope_scaling(config).get("rope_scaling")
    said = RopeScalingConfig.model_validate(scaling).model_dump(exclude_defaults=True) if scaling else None
    return {**config, "rope_scaling": said}


def _complete(content: dict[str, Any], path: Path) -> PretrainedConfig:
    """With the defaults of `transformers`."""
    try:
        return AutoConfig.for_model(**content)
    except Exception as error:  # each class checks in its own way
        raise ConversionError(f"{path} is no configuration that transformers can read: {error}") from None
