"""Reading a cleaning recipe: YAML, `extends`, overrides, mistakes in plain words, and its fingerprint."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from bigtrain.config.reading import file_layers, merge, override_layer
from bigtrain.config.reference import any_of, in_yaml, takes
from bigtrain.errors import ConfigError, DataError
from bigtrain.prepare.clean_recipe import STEPS, Decontaminate, Executor, Language, Recipe

WITHOUT_EFFECT = {"output", "workers", "executor", "examples", "keep_intermediate"}
"""Keys that do not change which documents come out."""


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe as `load_config` reads a configuration. An override names a step by its kind:
    ``steps.language.language_threshold=0.8``.

    Raises:
        ConfigError: the file cannot be read; a key is unknown or missing, or a value has the wrong type.
    """
    layers = file_layers(Path(path))
    tree = merge(layers)
    for word in overrides:
        _override(tree, override_layer(word).tree, word)
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        lines = dict.fromkeys(_line(mistake, tree) for mistake in error.errors())
        raise ConfigError("\n".join(f"{layers[-1].source}: {line}" for line in lines)) from None


def resolved(recipe: Recipe) -> dict[str, Any]:
    """Everything that decides which documents come out, every default spelled out."""
    return recipe.model_dump(mode="json", exclude=WITHOUT_EFFECT)


def fingerprint(recipe: Recipe) -> str:
    """SHA-256 over what decides the result: the resolved recipe, the versions of what carries it out, and the content
    of benchmarks and of a language model's file.

    Raises:
        DataError: one of these files cannot be read.
    """
    packages = {name: version(name) for name in ("datatrove", "ftfy", "spacy", "py3langid")}
    digests = {file: _sha256(file) for file in _files(recipe)}
    said = json.dumps([resolved(recipe), packages, digests], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(said.encode()).hexdigest()


def differences(mine: Any, other: Any, path: str = "") -> Iterator[str]:
    """The dotted keys in which two trees of JSON differ; of a list of steps, by their kinds."""
    if path == "steps":
        mine, other = ({step["step"]: step for step in steps} for steps in (mine, other))
        if list(mine) != list(other) and sorted(mine) == sorted(other):
            yield "the order of steps"
    if not (isinstance(mine, dict) and isinstance(other, dict)):
        if mine != other:
            yield path
        return
    for key in dict.fromkeys([*mine, *other]):
        yield from differences(mine.get(key), other.get(key), f"{path}.{key}" if path else key)


def _files(recipe: Recipe) -> list[str]:
    files: list[str] = []
    for step in recipe.steps:
        if isinstance(step, Decontaminate):
            files += step.benchmarks
        if isinstance(step, Language) and is_model_file(step.model):
            files.append(step.model)
    return files


def is_model_file(model: str) -> bool:
    """Whether a `language` step's model is a file of the user's."""
    return model not in ("py3langid", "ft176", "glotlid")


def _sha256(path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def _override(tree: dict[str, Any], change: Mapping[str, Any], word: str) -> None:
    """Change `tree` in place."""
    for key, value in change.items():
        under = tree.get(key)
        if key == "steps" and isinstance(under, list) and isinstance(value, dict):
            named = {step.get("step"): step for step in under if isinstance(step, dict)}
            for kind, inside in value.items():
                if kind not in named:
                    there = ", ".join(map(str, named))
                    raise ConfigError(f"override {word!r}: the recipe has no step {kind}; it has {there}")
                _override(named[kind], inside, word)
        elif isinstance(under, dict) and isinstance(value, dict):
            _override(under, value, word)
        else:
            tree[key] = value


def _line(error: ErrorDetails, tree: Any) -> str:
    """One mistake: the key, the value, and what would be right."""
    kind, location = error["type"], list(error["loc"])
    owner: type[BaseModel] = Recipe
    name = ""
    if location[:1] == ["executor"] and len(location) > 1:
        owner, name, location = Executor, "executor: ", location[1:]
    elif location[:1] == ["steps"] and len(location) > 1:
        number = location[1]
        if kind in ("union_tag_invalid", "union_tag_not_found") or len(location) == 2:
            return _no_step(tree["steps"][number], f"steps[{number}]")
        owner, name, location = STEPS[str(location[2])], f"steps[{number}] ({location[2]}): ", location[3:]
    if kind == "value_error":
        return str(error["ctx"]["error"]) if "ctx" in error else error["msg"]
    key = ".".join(map(str, location))
    known = list(owner.model_fields)
    if kind == "extra_forbidden":
        near = get_close_matches(key, known, 1)
        return f"{name}unknown key {key}; {f'did you mean {near[0]}? ' if near else ''}It has {', '.join(known)}"
    field = owner.model_fields[str(location[0])]
    about = " ".join((field.description or "").split())
    if kind == "missing":
        return f"{name}{key} is missing: {about}"
    given = error["input"]
    shown = repr(given) if isinstance(given, str) else in_yaml(given)
    if len(location) > 1:  # inside a list or a mapping
        return f"{name}{key} = {shown}: {error['msg']}. {location[0]}: {about}"
    words = "a list" if str(location[0]) == "steps" else takes(field)
    return f"{name}{key} = {shown}: it takes {words}. {about}"


def _no_step(given: Any, where: str) -> str:
    if not isinstance(given, dict) or "step" not in given:
        return f"{where} is no step: write `- step: KIND`, KIND being {any_of(list(STEPS))}"
    near = get_close_matches(str(given["step"]), STEPS, 1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"{where}: no step {given['step']!r}; {hint}There are {', '.join(STEPS)}"
