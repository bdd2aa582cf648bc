"""`dataset.json`: what a dataset says of itself."""

import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, overload

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError
from pydantic_core import from_json

from bigtrain.errors import DataError

FORMAT_VERSION = 1
MANIFEST = "dataset.json"


@dataclass(frozen=True)
class TokenizerRecord:
    """The tokenizer that made the dataset; `file` lies in the dataset's folder."""

    file: str
    fingerprint: str
    vocab_size: int
    eos_id: int


@dataclass(frozen=True)
class ShardRecord:
    """One shard; `file` lies in the dataset's folder."""

    file: Annotated[str, Field(pattern=r"^[^/\n]+$")]
    tokens: Annotated[int, Field(ge=0)]
    documents: Annotated[int, Field(ge=0)]
    size_bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Shards(Sequence[ShardRecord]):
    """Many records, kept by column: 10^5 of them as objects take half a second to make, and memory for months."""

    def __init__(
        self, file: list[str], tokens: np.ndarray, documents: np.ndarray, size_bytes: np.ndarray, sha256: list[str]
    ) -> None:
        self.file = file
        self.tokens = tokens
        self.documents = documents
        self.size_bytes = size_bytes
        self.sha256 = sha256

    def __len__(self) -> int:
        return len(self.file)

    @overload
    def __getitem__(self, index: int) -> ShardRecord: ...
    @overload
    def __getitem__(self, index: slice) -> list[ShardRecord]: ...
    def __getitem__(self, index: int | slice) -> ShardRecord | list[ShardRecord]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        return ShardRecord(
            self.file[index],
            int(self.tokens[index]),
            int(self.documents[index]),
            int(self.size_bytes[index]),
            self.sha256[index],
        )

    def __iter__(self) -> Iterator[ShardRecord]:
        numbers = (self.tokens.tolist(), self.documents.tolist(), self.size_bytes.tolist())
        return map(ShardRecord, self.file, *numbers, self.sha256)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)


@dataclass(frozen=True)
class Manifest:
    """What `dataset.json` says. `bytes` is the length of all the text in UTF-8: the denominator of bits per byte."""

    format_version: int
    tokenizer: TokenizerRecord
    dtype: Literal["uint16", "uint32"]
    tokens: int
    documents: int
    bytes: int
    shards: Sequence[ShardRecord]
    provenance: dict[str, Any] = field(default_factory=dict)
    """What it was made from, and how."""


def token_dtype(vocab_size: int) -> Literal["uint16", "uint32"]:
    """The smallest type that holds every id."""
    return "uint16" if vocab_size <= 2**16 else "uint32"


def read_manifest(path: Path) -> Manifest:
    """What the `dataset.json` in the folder `path` says. Raises DataError if it cannot be read or understood."""
    file = path / MANIFEST
    try:
        content = file.read_bytes()
    except OSError as error:
        hint = next((f"; did you mean {part.parent}?" for part in sorted(path.glob(f"*/{MANIFEST}"))), "")
        raise DataError(f"{path}: no dataset there, {MANIFEST} cannot be read ({error.strerror}){hint}") from error
    return parse_manifest(content, str(file))


def parse_manifest(text: bytes, name: str) -> Manifest:
    """What a `dataset.json` says. Raises DataError, beginning with `name`, if it cannot be understood."""
    try:
        content = from_json(text)
    except ValueError as error:
        raise DataError(f"{name}: not JSON ({error})") from error
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise DataError(f"{name}: format_version is {version}; this BigTrain reads {FORMAT_VERSION}")
    shards = _columns(content.get("shards"))
    try:
        manifest = TypeAdapter(Manifest).validate_python(content if shards is None else {**content, "shards": []})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(key) for key in first["loc"])
        raise DataError(f"{name}: {where}: {first['msg']}") from error
    if shards is None:
        raise DataError(f"{name}: shards: two have the same name, or a number is beyond 64 bits")
    for total in ("tokens", "documents"):
        if getattr(manifest, total) != getattr(shards, total).sum():
            raise DataError(f"{name}: {total} is not the sum over its shards")
    return replace(manifest, shards=shards)


def local_sizes(path: Path, look_at_sizes: bool) -> dict[str, int | None]:
    """The files in the folder `path` and their bytes, or None for each. Raises DataError if it cannot be listed."""
    try:
        if not look_at_sizes:
            return dict.fromkeys(os.listdir(path))  # noqa: PTH208 (of 10^5 files)
        sizes: dict[str, int | None] = {}
        for entry in os.scandir(path):
            with suppress(FileNotFoundError):  # a link to nothing
                sizes[entry.name] = entry.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: cannot be listed ({error.strerror})") from error
    return sizes


def check_files(path: Path, manifest: Manifest, sizes: Mapping[str, int | None]) -> None:
    """Compare the manifest of the folder `path` with the sizes of the files there, None for one that is not known.

    Raises:
        DataError: a shard is missing, or of another size than recorded.
    """
    shards = by_column(manifest.shards)
    for file, recorded in zip(shards.file, shards.size_bytes.tolist(), strict=True):
        if file not in sizes:
            raise DataError(f"{path / file}: shard cannot be read ({os.strerror(errno.ENOENT)})")
        size = sizes[file]
        if size is not None and size != recorded:
            raise other_size(path / file, size, recorded)


def other_size(path: Path, size: int, recorded: int) -> DataError:
    """What to raise where the file `path` of a shard has `size` bytes."""
    return DataError(f"{path}: has {size} bytes, {MANIFEST} says {recorded}: cut or replaced")


def by_column(shards: Sequence[ShardRecord]) -> Shards:
    """The records by column; what `read_manifest` gives is so already."""
    if isinstance(shards, Shards):
        return shards
    rows = [(shard.file, shard.tokens, shard.documents, shard.size_bytes, shard.sha256) for shard in shards]
    file, tokens, documents, size_bytes, sha256 = map(list, zip(*rows, strict=True)) if rows else ([], [], [], [], [])
    return Shards(file, _int64(tokens), _int64(documents), _int64(size_bytes), sha256)


def _int64(numbers: list[int]) -> np.ndarray:
    return np.array(numbers, dtype=np.int64)


def _columns(entries: Any) -> Shards | None:
    """The records by column, or None if anything about them is wrong: then pydantic, entry by entry, says what."""
    try:
        columns = {name: [entry[name] for entry in entries] for name in ShardRecord.__annotations__}
        files, sums = columns["file"], columns["sha256"]
        numbers = [_int64(columns[name]) for name in ("tokens", "documents", "size_bytes")]
        right = (
            isinstance(entries, list)
            and all({*map(type, columns[name])} <= {int} for name in ("tokens", "documents", "size_bytes"))
            and all((column >= 0).all() for column in numbers)
            and len({*files}) == len(files)
            and {*map(len, sums)} <= {64}
            and not "".join(sums).strip("0123456789abcdef")
            and "/" not in (names := "".join(files))
            and "\n" not in names
            and "" not in files
        )
    except (TypeError, KeyError, OverflowError, ValueError):
        return None
    return Shards(files, numbers[0], numbers[1], numbers[2], sums) if right else None
