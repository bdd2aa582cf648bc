"""Configuration files and overrides as layers: what each one says, the lowest first.

The layers are kept apart until the end so that a message can name the file or the override that
said a thing.
"""

import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import reduce
from pathlib import Path
from typing import Any

import yaml

from bigtrain.errors import ConfigError

_INT = re.compile(r"^[-+]?(?:0|[1-9][0-9_]*)$")
_FLOAT = re.compile(
    r"^(?:[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)

STANDARD_INPUT = Path("-")


@dataclass(frozen=True)
class Layer:
    """What one file or override says, and how a message names it."""

    source: str
    tree: dict[str, Any]


class _Loader(yaml.SafeLoader):
    """YAML with the numbers that people write, and no key given twice.

    Against PyYAML's YAML 1.1: `3e-4` is a number, `1e5` a whole one, while `010` (octal there),
    `1:30` (base 60 there) and `2026-01-01` (a date there) stay text.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own attribute
        first: [
            (tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] not in ("int", "float", "timestamp")
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in lines:
                said = f"{key.value} is given twice, first in line {lines[key.value]}"
                raise yaml.constructor.ConstructorError(None, None, said, key.start_mark)
            lines[key.value] = key.start_mark.line + 1
        return node

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        value: float = self.construct_yaml_float(node)
        return int(value) if "." not in node.value and value.is_integer() else value


class _Dumper(yaml.SafeDumper):
    """Quotes what `_Loader` would take for a number."""


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list("-+0123456789"))
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_number)


def dump(tree: Mapping[str, Any]) -> str:
    """YAML text that reads back as `tree`, here and with any YAML reader."""
    return yaml.dump(dict(tree), Dumper=_Dumper, sort_keys=False)


def file_layers(path: Path) -> list[Layer]:
    """The layers of a file, `-` for standard input: those that it extends, each below the next, and itself on top.

    Raises:
        ConfigError: A file cannot be read, is not YAML, or extends itself.
    """
    if path == STANDARD_INPUT:
        return _layers_of(_text(path, ""), "standard input", Path.cwd(), ())
    return _file_layers(path.resolve(), ())


def override_layer(word: str) -> Layer:
    """The layer of one override such as ``parallel.tensor=2``; the value is read as YAML.

    Raises:
        ConfigError: The word has another form, or the value is not YAML.
    """
    dotted, equals, text = word.partition("=")
    keys = dotted.split(".")
    if not equals or not all(keys) or keys != [key.strip() for key in keys]:
        raise ConfigError(f"override {word!r} is not of the form section.key=value, such as parallel.tensor=2")
    if keys[0] == "extends":
        raise ConfigError(f"override {word!r}: extends is said in a file, at its top, not in an override")
    tree = _parse(text, f"override {word!r}")
    for key in reversed(keys):
        tree = {key: tree}
    return Layer("command line", tree)


def merge(layers: Iterable[Layer]) -> dict[str, Any]:
    """One tree of the layers: sections are joined, anything else of a later layer replaces the earlier."""
    return reduce(_merged, (layer.tree for layer in layers), {})


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        merged[key] = _merged(under, value) if isinstance(value, dict) and isinstance(under, dict) else value
    return merged


def _file_layers(path: Path, chain: tuple[Path, ...]) -> list[Layer]:
    if path in chain:
        circle = (*chain[chain.index(path) :], path)
        raise ConfigError("extends goes in a circle: " + " -> ".join(map(_shown, circle)))
    text = _text(path, f", which {_shown(chain[-1])} extends" if chain else "")
    return _layers_of(text, _shown(path), path.parent, (*chain, path))


def _layers_of(text: str, name: str, folder: Path, chain: tuple[Path, ...]) -> list[Layer]:
    """Of a text that lies in `folder`; `chain` are the files that led to it, itself included."""
    tree = _parse(text, name)
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        what = "a list" if isinstance(tree, list) else "a single value"
        raise ConfigError(f"{name}: a configuration holds sections such as `model:`, not {what}")
    parents = tree.pop("extends", [])
    parents = [parents] if isinstance(parents, str) else parents
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        raise ConfigError(f"{name}: extends takes a file name or a list of file names, not {parents!r}")
    layers = [layer for parent in parents for layer in _file_layers((folder / parent).resolve(), chain)]
    # a section whose keys are all commented out reads as null: it says nothing
    return [*layers, Layer(name, {key: {} if value is None else value for key, value in tree.items()})]


def _text(path: Path, why: str) -> str:
    try:
        return sys.stdin.buffer.read().decode() if path == STANDARD_INPUT else path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        reason = "it is not UTF-8 text"
    except OSError as error:
        reason = error.strerror or str(error)
    except ValueError as error:  # a null byte in the name
        reason = str(error)
    near = get_close_matches(path.name, _yaml_files(path.parent), 1)
    hint = f"; did you mean {_shown(path.parent / near[0])}?" if near and near[0] != path.name else ""
    raise ConfigError(f"cannot read the configuration {_shown(path)}{why}: {reason}{hint}")


def _yaml_files(folder: Path) -> list[str]:
    try:
        return sorted(file.name for file in folder.iterdir() if file.suffix in (".yaml", ".yml"))
    except OSError:
        return []


def _parse(text: str, source: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        hint = " (YAML is indented with spaces)" if "'\\t'" in str(error.problem) else ""
        raise ConfigError(f"{source}{place}: {error.problem or error.context}{hint}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not YAML: {' '.join(str(error).split())}") from None


def _shown(path: Path) -> str:
    """Relative to where the user stands, where that is shorter."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
