"""`--sweep KEY=VALUE,VALUE`: one configuration becomes several, each with a folder of its own."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from bigtrain.config import Config
from bigtrain.config.reading import override_layer
from bigtrain.errors import LaunchError

_SHARED = {
    "launch": "the tasks of an array are alike: submit them one by one",
    "training.output_dir": "each run of a sweep has a folder of its own already",
    "checkpoint.dir": "each run of a sweep has a folder of its own already",
}


@dataclass(frozen=True)
class Variant:
    """One run of a sweep."""

    name: str
    """`optimizer.lr=0.0001`; with several keys `optimizer.lr=0.0001,training.seed=2`."""
    overrides: list[str]


def variants(sweeps: Sequence[str]) -> list[Variant]:
    """Every combination of the values, the last key varying fastest.

    Args:
        sweeps: Words like ``optimizer.lr=1e-4,3e-4``; the values are read as YAML.

    Raises:
        LaunchError: A word cannot be read, is of a key that a sweep cannot vary, or two runs would be the same.
    """
    choices = dict(_choices(word) for word in sweeps)
    if len(choices) < len(sweeps):
        raise LaunchError("--sweep: a key is given twice; put all of its values into one list")
    found = []
    for values in product(*choices.values()):
        pairs = list(zip(choices, values, strict=True))
        name = ",".join(f"{key}={_name(value)}" for key, value in pairs)
        found.append(Variant(name, [f"{key}={json.dumps(value)}" for key, value in pairs]))
    names = [variant.name for variant in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise LaunchError(f"--sweep: two runs would be named {twice[0]}; leave one of the values out")
    return found


def own_places(base: Config, variant: Variant) -> list[str]:
    """Overrides that give a variant its own folders and name."""
    words = [f"training.output_dir={json.dumps(str(Path(base.training.output_dir) / variant.name))}"]
    if base.checkpoint.dir is not None:
        words.append(f"checkpoint.dir={json.dumps(base.checkpoint.dir.rstrip('/') + '/' + variant.name)}")
    if base.logging.run_name is not None:
        words.append(f"logging.run_name={json.dumps(f'{base.logging.run_name} {variant.name}')}")
    return words


def _choices(word: str) -> tuple[str, list[Any]]:
    key, equals, values = word.partition("=")
    if not equals or not values.strip():
        raise LaunchError(f"--sweep {word!r} is not of the form section.key=value,value")
    for shared, why in _SHARED.items():
        if key == shared or key.startswith(f"{shared}."):
            raise LaunchError(f"--sweep {key}: {why}")
    found: Any = override_layer(f"{key}=[{values}]").tree
    for part in key.split("."):
        found = found[part]
    return key, found


def _name(value: Any) -> str:
    """As a part of a file's name."""
    return re.sub(r"[^\w.+-]+", "_", value if isinstance(value, str) else json.dumps(value))
