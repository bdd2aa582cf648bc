"""Which files the inputs are, in which order, and what kind of file each is."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from bigtrain.errors import DataError

CLEANING = "cleaning.json"
"""Lies in a folder that `bigtrain data clean` made: the recipe and its counts."""

_CLEANED = "documents"
"""Where such a folder keeps its documents, if not beside that file."""

_COMPRESSION = {".gz": "gzip", ".zst": "zstd"}
_CLEANING_FILES = frozenset({CLEANING, "report.json", "report.html"})
_CARD_FILES = frozenset({"README.md", "LICENSE", "LICENSE.md", "LICENSE.txt", "dataset_infos.json"})
_SAVED_STATE = "state.json"
_SAVED_FILES = frozenset({"dataset_info.json", "dataset_dict.json", _SAVED_STATE})


class Kind(StrEnum):
    """How documents lie in a file."""

    text = "text"
    """The whole file is one document."""
    lines = "lines"
    """A JSON object a line."""
    parquet = "parquet"
    arrow = "arrow"
    """Arrow IPC, as a file or as a stream: the file itself says which."""


@dataclass(frozen=True)
class InputFile:
    """One file of the inputs."""

    path: Path
    source: str
    """Its name below the input folder, that folder's own name first."""
    kind: Kind
    compression: str | None
    """As pyarrow calls it; None for a plain file."""
    size: int
    modified: int
    """Nanoseconds since 1970: a file that changed is another one."""


def find_files(inputs: Sequence[str | Path], pattern: str = "*", exclude: Sequence[str] = ()) -> list[InputFile]:
    """The files of `inputs`; an input is a file, or a folder that is searched through in the order of names.

    Of a folder's files those count whose name matches the glob `pattern`; whatever has a name that matches
    one of `exclude`, folders included, is passed over, and so is what a folder holds beside its documents:
    names that begin with a dot, the card and licence of a Hugging Face dataset, the description and the caches
    in a folder of its `save_to_disk`, the report of a cleaning.

    Raises:
        DataError: an input is missing or unreadable, or no file is found.
    """
    found: list[InputFile] = []
    for given in inputs:
        root = Path(given)
        if not root.exists():
            raise DataError(f"{root}: no such file or folder")
        try:
            found.extend(_input_file(path, source) for path, source in _files(root, pattern, exclude))
        except OSError as error:
            raise DataError(f"{error.filename or root}: cannot be read ({error.strerror})") from error
    if not found:
        raise DataError(f"no file matches {pattern!r} in {', '.join(map(str, inputs)) or 'no input at all'}")
    return found


def read_cleaning(inputs: Sequence[str | Path]) -> dict[str, Any]:
    """What the `cleaning.json` of each input folder that has one says, by the folder's name.

    Raises:
        DataError: one cannot be read.
    """
    said = {}
    for folder in (Path(given).resolve() for given in inputs):
        path = (folder.parent if folder.name == _CLEANED else folder) / CLEANING
        if path.is_file():
            try:
                said[_printable(path.parent.name)] = json.loads(path.read_bytes())
            except (OSError, ValueError) as error:
                raise DataError(f"{path}: cannot be read ({error})") from error
    return said


def _input_file(path: Path, source: str) -> InputFile:
    compression = _COMPRESSION.get(path.suffix)
    suffix = Path(path.stem).suffix if compression else path.suffix
    if suffix in (".jsonl", ".ndjson"):
        kind = Kind.lines
    elif compression or suffix not in (".parquet", ".arrow"):
        kind = Kind.text
    else:
        kind = Kind(suffix[1:])
    stat = path.stat()
    return InputFile(path, source, kind, compression, stat.st_size, stat.st_mtime_ns)


def _files(root: Path, pattern: str, exclude: Sequence[str]) -> list[tuple[Path, str]]:
    """The files of one input, with their sources."""
    if root.is_file():
        return [(root, _printable(root.name))]
    found: dict[Path, list[Path]] = {}
    cleaned = (root / CLEANING).is_file() and (root / _CLEANED).is_dir()
    for path in (root / _CLEANED if cleaned else root).rglob("*"):
        inside = path.relative_to(root).parts
        hidden = any(part.startswith(".") for part in inside)
        excluded = any(fnmatchcase(part, glob) for part in inside for glob in exclude)
        if not hidden and not excluded and path.is_file():
            found.setdefault(path.parent, []).append(path)
    files = [
        (path, _printable(f"{root.resolve().name}/{path.relative_to(root).as_posix()}"))
        for folder, paths in found.items()
        for path in _documents_of(folder, paths)
        if fnmatchcase(path.name, pattern)
    ]
    return sorted(files, key=lambda file: file[1])


def _documents_of(folder: Path, paths: list[Path]) -> list[Path]:
    """Those of a folder's files that hold documents."""
    names = {path.name for path in paths}
    beside: set[str] = set()
    if CLEANING in names:
        beside |= _CLEANING_FILES
    if "dataset_dict.json" in names:
        beside |= _SAVED_FILES
    if _has_card(folder):
        beside |= _CARD_FILES
    if {_SAVED_STATE, "dataset_info.json"} <= names:
        kept = _saved_files(folder / _SAVED_STATE)
        beside |= _SAVED_FILES | {name for name in names if name.endswith(".arrow") and name not in kept}
    return [path for path in paths if path.name not in beside]


def _saved_files(state: Path) -> set[str]:
    """The files that `save_to_disk` wrote; others there are caches of `map` and `filter`."""
    try:
        content = json.loads(state.read_bytes())
        if content.get("_indices_data_files") or content.get("_indices_files"):
            raise DataError(f"{state.parent}: was saved with a selection of rows; call flatten_indices() before saving")
        return {entry["filename"] for entry in content["_data_files"]}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{state}: is not what `save_to_disk` writes ({error!r})") from error


def _has_card(folder: Path) -> bool:
    """Whether this is a copy of a Hugging Face dataset's repository."""
    card = folder / "README.md"
    if (folder / ".gitattributes").exists():
        return True
    if not card.is_file():
        return False
    with card.open("rb") as file:
        return file.read(4) in (b"---\n", b"---\r")


def _printable(name: str) -> str:
    return name.encode(errors="backslashreplace").decode()  # a file's name need not be UTF-8
