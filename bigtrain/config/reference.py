"""The schema in words: every option with its type, default and meaning.

The messages about a wrong value, `docs/configuration.md` and the frozen list of options in the
tests all speak from here.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from bigtrain.config.schema import Config

_BOUNDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text", NoneType: "null"}


@dataclass(frozen=True)
class Option:
    """One key of the configuration."""

    key: str
    """Dotted: `parallel.tensor`."""
    type: str
    """What it takes, in words: `a whole number above 0`."""
    default: str | None
    """As YAML writes it; None where the key must be given."""
    description: str


def options(section: type[BaseModel] = Config, prefix: str = "") -> Iterator[Option]:
    """Every option below `section`, in the schema's order; of sections by name or in a list each once, as NAME or N."""
    for name, field in section.model_fields.items():
        below = as_section(field)
        if below and field.default is not None:
            yield from options(below, f"{prefix}{name}.")
        else:
            default = None if field.is_required() else in_yaml(field.get_default(call_default_factory=True))
            yield Option(prefix + name, takes(field), default, " ".join((field.description or "").split()))
            if below:
                yield from options(below, f"{prefix}{name}.")
            if each := of_each(field):
                yield from options(each, f"{prefix}{name}.{'NAME' if get_origin(field.annotation) is dict else 'N'}.")


def markdown() -> str:
    """The reference of all options: a heading, the section's sentence and a table for each section."""
    return "\n".join(_chapter(name, section) for name, section in sections())


def sections() -> Iterator[tuple[str, type[BaseModel]]]:
    """The name and the class of every section."""
    for name, field in Config.model_fields.items():
        if section := as_section(field):
            yield name, section


def as_section(field: FieldInfo) -> type[BaseModel] | None:
    """The class of a field that holds a section, if it may be null too; None for an option."""
    kinds = get_args(field.annotation) if isinstance(field.annotation, UnionType) else (field.annotation,)
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def of_each(field: FieldInfo) -> type[BaseModel] | None:
    """The class of the sections that a field holds several of, by name or in a list."""
    parts = get_args(field.annotation)
    kind = parts[-1] if parts and get_origin(field.annotation) in (dict, list) else None
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def takes(field: FieldInfo) -> str:
    """What an option takes, in words."""
    return _words(field.annotation, field.metadata)


def choices(field: FieldInfo) -> list[str]:
    """The words that a field takes; empty where it does not name them."""
    return [str(word) for word in get_args(field.annotation)] if get_origin(field.annotation) is Literal else []


def in_yaml(value: Any) -> str:
    """A value as YAML writes it on one line."""
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False, default=str)


def any_of(words: Sequence[str], last: str = "or") -> str:
    """`a, b or c`."""
    return f" {last} ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _words(kind: Any, metadata: Sequence[Any] = ()) -> str:
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _words(parts[0], parts[1:])
    if origin in (Union, UnionType):
        return any_of([_words(part) for part in parts])
    if origin is Literal:
        return any_of([str(part) for part in parts])
    if origin is tuple:
        return f"a list of {len(parts)}, each {_words(parts[0])}"
    if origin is list:
        return f"a list, each {_words(parts[0])}"
    if origin is dict:
        return f"names, each with {_words(parts[1])}"
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return f"a section with {any_of(list(kind.model_fields), 'and')}"
    # a Field inside an Annotated holds its constraints in a list
    constraints = [constraint for item in metadata for constraint in getattr(item, "metadata", [item])]
    bounds = [
        f"{word} {getattr(constraint, name)}"
        for constraint in constraints
        for name, word in _BOUNDS.items()
        if isinstance(constraint, Gt | Ge | Lt | Le) and hasattr(constraint, name)
    ]
    some = ["non-empty"] if any(isinstance(constraint, MinLen) for constraint in constraints) else []
    return " ".join([*some, _NAMES.get(kind, str(kind)), " and ".join(bounds)]).strip()


def _chapter(name: str, section: type[BaseModel]) -> str:
    rows = []
    for option in options(section):
        cells = (f"`{name}.{option.key}`", option.type, _default(option), option.description)
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    about = " ".join((section.__doc__ or "").split())
    return "\n".join(
        [f"## `{name}`\n", f"{about}\n", "| key | takes | default | meaning |", "|---|---|---|---|", *rows, ""]
    )


def _default(option: Option) -> str:
    return "**required**" if option.default is None else f"`{option.default}`"
