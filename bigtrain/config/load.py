"""Read a configuration: YAML, `extends`, dotted overrides, and one clear message for all mistakes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bigtrain.config.explain import explain
from bigtrain.config.reading import Layer, dump, file_layers, merge, override_layer
from bigtrain.config.schema import Config
from bigtrain.errors import ConfigError


def load_config(path: str | Path, overrides: Sequence[str] = (), lowest: Sequence[Layer] = ()) -> Config:
    """Read the YAML file at `path`, follow its `extends`, apply `key.path=value` overrides.

    Args:
        path: The YAML file; `-` is standard input. `extends: other.yaml` (or a list) is relative to the file that
            says it; what the file itself says wins, and of a list the later.
        overrides: Words like ``parallel.tensor=2``; a value is read as YAML. The later wins.
        lowest: What holds where neither says otherwise.

    Raises:
        ConfigError: The file cannot be read, a key is unknown or missing, or a value has the wrong type.
    """
    files = file_layers(Path(path))
    return _parse([*lowest, *files, *map(override_layer, overrides)], where_missing=files[-1].source)


def said(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """What the file and the overrides say, merged and not yet checked.

    Raises:
        ConfigError: A file or an override cannot be read.
    """
    return merge([*file_layers(Path(path)), *map(override_layer, overrides)])


def parse_config(tree: Mapping[str, Any]) -> Config:
    """Turn nested dictionaries into a :class:`Config`.

    Raises:
        ConfigError: A key is unknown or missing, or a value has the wrong type; all in one message.
    """
    return _parse([Layer("", dict(tree))])


def to_yaml(config: Config) -> str:
    """The configuration with every default spelled out, readable by :func:`load_config`."""
    return dump(config.model_dump(mode="json"))


def _parse(layers: Sequence[Layer], where_missing: str = "") -> Config:
    try:
        return Config.model_validate(merge(layers))
    except ValidationError as error:
        raise ConfigError(explain(error.errors(), layers, where_missing)) from None
