"""Writing datasets; `shards` tells their format."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from bigtrain.data.manifest import FORMAT_VERSION, MANIFEST, Manifest, ShardRecord, TokenizerRecord, token_dtype
from bigtrain.data.mapped import schema
from bigtrain.data.tokenizer import Tokenizer, copy_tokenizer
from bigtrain.errors import DataError

TOKENS_PER_SHARD = 64 * 2**20
"""128 MiB of uint16: large enough to read sequentially, small enough to copy and check one at a time."""


@dataclass(frozen=True)
class Documents:
    """Tokenised documents on their way to a shard."""

    tokens: np.ndarray
    """All their ids, one after the other, each document ending with the end-of-document token."""
    lengths: np.ndarray
    """int64: tokens in each, that token included."""
    sources: list[str]
    positions: list[int]
    bytes: int
    """Length of all their text in UTF-8."""


@contextmanager
def new_folder(output: str | Path) -> Iterator[Path]:
    """A folder to write into that becomes `output` if the block ends well, and vanishes if it does not.

    Raises:
        DataError: `output` exists, or cannot be made.
    """
    output = Path(output)
    if output.exists():
        raise DataError(f"{output}: exists already; remove it or choose another output folder")
    partial = output.with_name(output.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)  # left by a run that was killed
        partial.mkdir(parents=True)
    except OSError as error:
        raise DataError(f"{output}: cannot be written ({error.strerror})") from error
    try:
        yield partial
        partial.rename(output)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


class ShardWriter:
    """Writes documents, in the order they are given, to shards in `folder`; `close` completes the dataset.

    A document is never split: a shard ends before the document that would take it beyond `tokens_per_shard`.
    """

    def __init__(self, folder: Path, tokenizer: Tokenizer, tokens_per_shard: int = TOKENS_PER_SHARD) -> None:
        self._folder = folder
        self._tokenizer = tokenizer
        self._tokens_per_shard = tokens_per_shard
        self._dtype = token_dtype(tokenizer.vocab_size)
        self._pending: list[Documents] = []
        self._pending_tokens = 0
        self._bytes = 0
        self._shards: list[ShardRecord] = []
        self.documents = 0
        """Given so far."""

    def add(self, documents: Documents) -> None:
        self._bytes += documents.bytes
        self.documents += len(documents.lengths)
        ends = np.cumsum(documents.lengths)
        first, start = 0, 0  # of the documents not yet taken
        while first < len(ends):
            room = self._tokens_per_shard - self._pending_tokens
            last = int(np.searchsorted(ends, start + room, side="right"))
            if last == first and not self._pending:
                last += 1  # larger than a whole shard: has one of its own
            if last > first:
                stop = int(ends[last - 1])
                self._pending.append(
                    Documents(
                        documents.tokens[start:stop].astype(self._dtype, copy=False),
                        documents.lengths[first:last],
                        documents.sources[first:last],
                        documents.positions[first:last],
                        bytes=0,
                    )
                )
                self._pending_tokens += stop - start
                first, start = last, stop
            if first < len(ends):
                self._flush()

    def close(self, provenance: dict[str, Any] | None = None) -> Manifest:
        """Write what is left, the tokenizer's copy and `dataset.json`."""
        self._flush()
        return write_manifest(self._folder, self._tokenizer, self._bytes, self._shards, provenance)

    def _flush(self) -> None:
        if not self._pending:
            return
        path = self._folder / f"shard-{len(self._shards):05d}.arrow"
        self._shards.append(write_shard(path, self._pending, self._dtype))
        self._pending = []
        self._pending_tokens = 0


def write_shard(path: Path, documents: Sequence[Documents], dtype: str) -> ShardRecord:
    """Write documents to one shard."""
    tokens = np.concatenate([part.tokens for part in documents]).astype(dtype, copy=False)
    lengths = np.concatenate([part.lengths for part in documents])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    sources = pa.array([source for part in documents for source in part.sources], pa.string())
    positions = pa.array([position for part in documents for position in part.positions], pa.int64())
    batch = pa.record_batch(
        [
            pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(tokens)),
            sources.dictionary_encode(),
            positions,
        ],
        schema=schema(dtype),
    )
    with pa.ipc.new_file(str(path), batch.schema) as file:
        file.write_batch(batch)
    return ShardRecord(path.name, len(tokens), len(lengths), path.stat().st_size, _sha256(path))


def write_manifest(
    folder: Path,
    tokenizer: Tokenizer,
    text_bytes: int,
    shards: list[ShardRecord],
    provenance: dict[str, Any] | None = None,
) -> Manifest:
    """Write the tokenizer's copy and `dataset.json` beside the shards of `folder`; the dataset is complete then."""
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        tokenizer=TokenizerRecord(
            copy_tokenizer(tokenizer, folder), tokenizer.fingerprint, tokenizer.vocab_size, tokenizer.eos_id
        ),
        dtype=token_dtype(tokenizer.vocab_size),
        tokens=sum(shard.tokens for shard in shards),
        documents=sum(shard.documents for shard in shards),
        bytes=text_bytes,
        shards=shards,
        provenance=provenance or {},
    )
    (folder / MANIFEST).write_text(json.dumps(dataclasses.asdict(manifest), indent=1) + "\n")
    return manifest


def write_dataset(
    output: str | Path,
    documents: Iterable[Documents],
    tokenizer: Tokenizer,
    tokens_per_shard: int = TOKENS_PER_SHARD,
) -> Manifest:
    """Write a whole dataset to the new folder `output`, which appears only when it is complete.

    Raises:
        DataError: `output` exists, or cannot be made.
    """
    with new_folder(output) as folder:
        writer = ShardWriter(folder, tokenizer, tokens_per_shard)
        for group in documents:
            writer.add(group)
        return writer.close()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
