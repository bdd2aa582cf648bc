"""`dataset.json`: what a dataset says of itself."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

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
    file: str
    tokens: int
    documents: int
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What `dataset.json` says. `bytes` is the length of all the text in UTF-8: the denominator of bits per byte."""

    format_version: int
    tokenizer: TokenizerRecord
    dtype: Literal["uint16", "uint32"]
    tokens: int
    documents: int
    bytes: int
    shards: list[ShardRecord]
    provenance: dict[str, Any] = field(default_factory=dict)
    """What it was made from, and how."""


def token_dtype(vocab_size: int) -> Literal["uint16", "uint32"]:
    """The smallest type that holds every id."""
    return "uint16" if vocab_size <= 2**16 else "uint32"


def read_manifest(path: Path) -> Manifest:
    """What the `dataset.json` in the folder `path` says. Raises DataError if it cannot be read or understood."""
    file = path / MANIFEST
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        hint = next((f"; did you mean {part.parent}?" for part in sorted(path.glob(f"*/{MANIFEST}"))), "")
        raise DataError(f"{path}: no dataset there, {MANIFEST} cannot be read ({error.strerror}){hint}") from error
    except ValueError as error:
        raise DataError(f"{file}: not JSON ({error})") from error
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise DataError(f"{file}: format_version is {version}; this BigTrain reads {FORMAT_VERSION}")
    try:
        manifest = TypeAdapter(Manifest).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(key) for key in first["loc"])
        raise DataError(f"{file}: {where}: {first['msg']}") from error
    for total in ("tokens", "documents"):
        if getattr(manifest, total) != sum(getattr(shard, total) for shard in manifest.shards):
            raise DataError(f"{file}: {total} is not the sum over its shards")
    return manifest
