"""Pydantic's errors in the words of the person who wrote the configuration."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from bigtrain.config.reading import Layer, merge
from bigtrain.config.reference import any_of, as_section, choices, in_yaml, of_each, options, takes
from bigtrain.config.schema import Config

Location = tuple[int | str, ...]


def explain(errors: Iterable[ErrorDetails], layers: Sequence[Layer], where_missing: str = "") -> str:
    """One line for each mistake: who said it, the key, the value, and what would be right.

    Args:
        errors: What pydantic found in the merged layers.
        layers: Files and overrides, the lowest first; a mistake is laid at the door of the last one that names its key.
        where_missing: The file to name for a key that nobody gave.
    """
    tree = merge(layers)
    lines = []
    for error in errors:
        location, line = _line(error, tree)
        source = _source(layers, location) or where_missing
        lines.append(f"{source}: {line}" if source else line)
    return "\n".join(dict.fromkeys(lines))


def _source(layers: Sequence[Layer], location: Location) -> str:
    for layer in reversed(layers):
        try:
            _at(layer.tree, location)
        except (KeyError, IndexError, TypeError):
            continue
        return layer.source
    return ""


def _at(tree: Any, location: Location) -> Any:
    for part in location:
        tree = tree[part]
    return tree


def _line(error: ErrorDetails, tree: Any) -> tuple[Location, str]:
    """What is wrong, and the place in the tree that says it."""
    location, kind = error["loc"], error["type"]
    if kind == "extra_forbidden":
        return location, _unknown([str(part) for part in location])
    if kind == "invalid_key":
        return location, f"{'.'.join(map(str, location))} is not a name: a key is text"
    place, field = _field(location)
    path = [str(part) for part in place]
    if kind == "missing" and len(path) == len(location):
        return location, _missing(path, field)
    return tuple(place), _wrong(path, field, _at(tree, tuple(place)), kind)


def _missing(path: Sequence[str], field: FieldInfo) -> str:
    if section := as_section(field):
        needed = [name for name, below in section.model_fields.items() if below.is_required()]
        return f"the section {'.'.join(path)} is missing; it needs at least {', '.join(needed)}"
    return f"{'.'.join(path)} is missing ({takes(field)}): {' '.join((field.description or '').split())}"


def _wrong(path: Sequence[str], field: FieldInfo, value: Any, kind: str) -> str:
    key = ".".join(path)
    shown = repr(value) if isinstance(value, str) else in_yaml(value)  # quotes tell "2" from 2
    shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
    if section := as_section(field):
        needed = [name for name, below in section.model_fields.items() if below.is_required()]
        example = next(iter([*needed, *section.model_fields]))
        return f"{key} = {shown}: {key} is a section; give its keys, such as {key}.{example}"
    if isinstance(value, dict) and get_origin(field.annotation) is not dict:
        return f"{key} is a value, not a section: it takes {takes(field)}"
    what = "a finite number" if kind == "finite_number" else takes(field)
    return f"{key} = {shown}: it takes {what}{_hint(value, field)}"


def _hint(value: Any, field: FieldInfo) -> str:
    if near := get_close_matches(str(value), choices(field), 1):
        return f"; did you mean {near[0]}?"
    if "text" in takes(field) and isinstance(value, bool | int | float):
        return f"; as YAML reads it, '{in_yaml(value)}' in quotes is text"
    return ""


def _unknown(location: Sequence[str]) -> str:
    *path, key = location
    name = ".".join(location)
    known = [option.key for option in options() if option.key.islower()]  # not those of a NAME
    if key in known:  # `parallel.tensor: 2` in a file
        section, _, option = key.rpartition(".")
        return f"unknown key {name}; dots are for the command line: write `{option}:` indented below `{section}:`"
    if key == "extends":
        return f"unknown key {name}; extends stands at the top of a file, beside the sections"
    section_class = _section(path)
    own = list(section_class.model_fields) if section_class else []
    near = get_close_matches(key, own, 1)
    names = {option: option.rpartition(".")[2] for option in known}
    nearest = get_close_matches(key, names.values(), 1)
    candidates = (
        [option for option, last in names.items() if last == key],
        [".".join([*path, other]) for other in own if other in near or other in key or key in other],
        [option for option, last in names.items() if last in nearest],
    )
    for found in candidates:
        if found:
            return f"unknown key {name}; did you mean {any_of(found)}?"
    return f"unknown key {name}; {'.'.join(path) or 'a configuration'} has {', '.join(own)}"


def _field(location: Location) -> tuple[list[int | str], FieldInfo]:
    """The option or section at or above `location`, with its path: an error may lie inside a list."""
    owner: type[BaseModel] = Config
    path: list[int | str] = []
    field: FieldInfo | None = None
    parts = iter(location)
    for part in parts:
        field = owner.model_fields[str(part)]
        path.append(part)
        below = as_section(field)
        if below is None and (below := of_each(field)):
            name = next(parts, None)  # of one of several sections
            if name is None or len(location) == len(path) + 1:
                below = None
            else:
                path.append(name)
        if below is None:
            break
        owner = below
    assert field is not None, location
    return path, field


def _section(path: Sequence[str]) -> type[BaseModel] | None:
    owner: type[BaseModel] | None = Config
    names = iter(path)
    for name in names:
        field = owner.model_fields.get(name) if owner else None
        owner = as_section(field) or of_each(field) if field else None
        if field and of_each(field):
            next(names, None)
    return owner
