"""Read a configuration: YAML, `extends`, dotted overrides, and one clear message for each mistake."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from bigtrain.config.schema import Config
from bigtrain.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads `3e-4` as a number, as YAML 1.2 does, and refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)  # type: ignore[no-untyped-call]
            if key in seen:
                raise ConfigError(f"{key_node.start_mark.name}: line {key_node.start_mark.line + 1}: {key!r} is given twice")
            seen.add(key)
        return super().construct_mapping(node, deep)


def _float_resolver() -> None:
    import re

    pattern = re.compile(
        r"^[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+|\.[0-9]+(?:[eE][-+]?[0-9]+)?|\.inf|\.nan)$"
    )
    _Loader.add_implicit_resolver("tag:yaml.org,2002:float", pattern, list("-+0123456789."))


_float_resolver()


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read the YAML file at `path`, follow its `extends`, apply `key.path=value` overrides.

    Args:
        path: The YAML file. `extends: other.yaml` (or a list) is relative to the file that says it;
            what the file itself says wins, and of a list the later.
        overrides: Words like ``parallel.tensor=2``; a value is read as YAML.

    Raises:
        ConfigError: The file cannot be read, a key is unknown, or a value has the wrong type.
    """
    tree = _read(Path(path), ())
    for word in overrides:
        _override(tree, word)
    return parse_config(tree)


def parse_config(tree: Mapping[str, Any]) -> Config:
    """Turn nested dictionaries into a :class:`Config`; all mistakes are told in one message.

    Raises:
        ConfigError: A key is unknown or missing, or a value has the wrong type.
    """
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(e) for e in error.errors())) from None


def to_yaml(config: Config) -> str:
    """The configuration with every default spelled out, readable by :func:`load_config`."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _read(path: Path, chain: tuple[Path, ...]) -> dict[str, Any]:
    path = path.resolve()
    if path in chain:
        raise ConfigError("extends goes in a circle: " + " -> ".join(map(str, (*chain, path))))
    said_by = f" (extended by {chain[-1]})" if chain else ""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise ConfigError(f"cannot read the configuration {path}{said_by}: {reason}") from None
    try:
        loader = _Loader(text)
        loader.name = str(path)
        tree = loader.get_single_data()
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from None
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold sections such as `model:`, not a {type(tree).__name__}")
    parents = tree.pop("extends", [])
    parents = [parents] if isinstance(parents, str) else parents
    if not isinstance(parents, list) or not all(isinstance(p, str) for p in parents):
        raise ConfigError(f"{path}: extends takes a file name or a list of them")
    merged: dict[str, Any] = {}
    for parent in parents:
        merged = _merge(merged, _read(path.parent / parent, (*chain, path)))
    return _merge(merged, tree)


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def _override(tree: dict[str, Any], word: str) -> None:
    dotted, equals, text = word.partition("=")
    keys = dotted.split(".")
    if not equals or not all(keys):
        raise ConfigError(f"override {word!r} is not of the form section.key=value, such as parallel.tensor=2")
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        raise ConfigError(f"override {word!r}: the value is not YAML") from None
    for depth, key in enumerate(keys[:-1]):
        below = tree.get(key)
        if below is None:
            below = tree[key] = {}
        if not isinstance(below, dict):
            raise ConfigError(f"override {word!r}: {'.'.join(keys[: depth + 1])} is a value, not a section")
        tree = below
    tree[keys[-1]] = value


def _explain(error: Any) -> str:
    """One of pydantic's errors in the user's words."""
    location = [str(part) for part in error["loc"]]
    key = ".".join(location)
    if error["type"] == "extra_forbidden":
        return _unknown(location)
    if error["type"] == "missing":
        return f"{key} is missing: {_described(location)}"
    expected = error["msg"][:1].lower() + error["msg"][1:]
    return f"{key} = {error['input']!r}: {expected}"


def _unknown(location: list[str]) -> str:
    *sections, key = location
    owner = _section(sections)
    known = list(owner.model_fields) if owner else []
    name = ".".join(location)
    near = difflib.get_close_matches(key, known, 1, 0.6)
    if near:
        return f"unknown key {name}; did you mean {'.'.join([*sections, near[0]])}?"
    for title, field in Config.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel) and key in section.model_fields:
            return f"unknown key {name}; did you mean {title}.{key}?"
    return f"unknown key {name}; {'.'.join(sections) or 'a configuration'} has: {', '.join(known)}"


def _described(location: list[str]) -> str:
    *sections, key = location
    owner = _section(sections)
    field = owner.model_fields.get(key) if owner else None
    if field is None or field.annotation is None:
        return "give it a value"
    if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
        return f"a section with {', '.join(field.annotation.model_fields)}"
    return " ".join((field.description or "give it a value").split())


def _section(path: Sequence[str]) -> type[BaseModel] | None:
    owner: Any = Config
    for name in path:
        field = owner.model_fields.get(name)
        owner = field.annotation if field else None
        if not (isinstance(owner, type) and issubclass(owner, BaseModel)):
            return None
    return owner
