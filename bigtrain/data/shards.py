"""A dataset on disk: Arrow IPC shards, a `dataset.json`, and a copy of the tokenizer that made it.

A shard (`shard-00000.arrow`, Arrow's file format, one record batch) has a row for each document:

    tokens    large_list<uint16 | uint32>   the ids, the last of them the end-of-document token
    source    dictionary<int32, string>     the file it came from, relative to the input folder
    position  int64                         its record number in that file, from 0

The values of `tokens` are one contiguous stream and its offsets are the documents' borders, so that
training maps the file into memory and slices it without a copy, and plain `pyarrow` reads it too.
`dataset.json` is written last: a folder without it is no dataset.
"""

import functools
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bigtrain.data.cache import Cache
from bigtrain.data.manifest import (
    MANIFEST,
    Manifest,
    by_column,
    check_files,
    local_sizes,
    parse_manifest,
    read_manifest,
)
from bigtrain.data.mapped import Shard
from bigtrain.data.places import is_local
from bigtrain.data.remote import RemoteFolder, Retry, remote_place
from bigtrain.data.streamed import RemoteShards
from bigtrain.data.tokenizer import Tokenizer, load_tokenizer
from bigtrain.errors import DataError

LOOKED_AT = 10_000
"""Shards up to which their sizes are asked for at the start: a file system that spans a cluster answers a few
thousand such questions a second."""

_OPEN_SHARDS = 256
"""Maps kept open by a dataset; each holds a file descriptor, of which a process often has 1,024."""


class Document(NamedTuple):
    """One document of a dataset; `tokens` includes the end-of-document token."""

    tokens: np.ndarray
    source: str
    position: int


class TokenDataset:
    """A dataset opened for reading: one stream of tokens over all its shards. Made by :func:`open_dataset`."""

    def __init__(self, path: Path, manifest: Manifest, remote: RemoteShards | None = None) -> None:
        self.path = path
        """Its folder; behind a URL a `UPath`, to be named in messages and not to be opened."""
        self.manifest = manifest
        self.tokens = manifest.tokens
        self.documents = manifest.documents
        self.bytes = manifest.bytes
        self.dtype = np.dtype(manifest.dtype)
        shards = by_column(manifest.shards)
        self._token_starts = _starts(shards.tokens)
        self._document_starts = _starts(shards.documents)
        self._remote = remote
        self._shard = functools.lru_cache(maxsize=_OPEN_SHARDS)(self._open)

    def __reduce__(self) -> tuple[Any, ...]:
        """For the other ranks: what is known of the files, and none of the maps."""
        return TokenDataset, (self.path, self.manifest, self._remote)

    def read(self, start: int, length: int) -> np.ndarray:
        """Tokens `start` … `start + length - 1` of the stream, in the dataset's dtype.

        A read-only view of the mapped file, or a copy where the window crosses shards.

        Raises:
            IndexError: the window reaches beyond the stream.
            DataError: a shard is damaged.
        """
        parts = [shard.tokens[first:last] for shard, first, last in self._parts(start, length)]
        return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, self.dtype), *parts])

    def read_many(self, starts: Sequence[int], length: int) -> np.ndarray:
        """Windows of `length` tokens at `starts` [n]: [n, length], in the dataset's dtype. Raises as `read`."""
        tokens = np.empty((len(starts), length), dtype=self.dtype)
        borders, shard_of = self._token_starts, self._shard
        for row, start in enumerate(starts):
            number = bisect_right(borders, start) - 1
            first = start - borders[number]
            last = first + length
            if start + length <= borders[number + 1]:
                tokens[row] = shard_of(number).tokens[first:last]
            else:
                tokens[row] = self.read(start, length)
        return tokens

    def document_starts(self, start: int, length: int) -> np.ndarray:
        """Boolean [length]: true where a token of that window is the first of its document. Raises as `read`."""
        mask = np.zeros(length, dtype=bool)
        done = 0
        for shard, first, last in self._parts(start, length):
            low, high = shard.offsets[:-1].searchsorted((first, last))
            mask[shard.offsets[low:high] - first + done] = True
            done += last - first
        return mask

    def document(self, index: int) -> Document:
        """Document number `index`. Raises IndexError, and DataError as `read`."""
        if not 0 <= index < self.documents:
            raise IndexError(f"document {index} of {self.documents} in {self.path}")
        number = bisect_right(self._document_starts, index) - 1
        shard, row = self._shard(number), index - self._document_starts[number]
        tokens = shard.tokens[shard.offsets[row] : shard.offsets[row + 1]]
        return Document(tokens, shard.sources[row].as_py(), shard.positions[row].as_py())

    def document_begins(self, start: int, length: int) -> list[int]:
        """Where in that window documents begin: places from its first token, in order. Raises as `read`."""
        number = bisect_right(self._token_starts, start) - 1
        origin = start - self._token_starts[number]
        if start + length <= self._token_starts[number + 1]:  # as most do
            starts = self._shard(number).document_starts
            low = bisect_left(starts, origin)
            high = bisect_left(starts, origin + length, low, min(low + length, len(starts)))
            return [start - origin for start in starts[low:high].tolist()]
        begins: list[int] = []
        origin = start  # of what is not yet looked at
        for shard, first, last in self._parts(start, length):
            low, high = shard.offsets[:-1].searchsorted((first, last)).tolist()
            begins += (shard.offsets[low:high] + (origin - start - first)).tolist()
            origin += last - first
        return begins

    def document_span(self, index: int) -> tuple[int, int]:
        """Where document number `index` lies in the stream: (first token, how many). Raises as `document`."""
        if not 0 <= index < self.documents:
            raise IndexError(f"document {index} of {self.documents} in {self.path}")
        number = bisect_right(self._document_starts, index) - 1
        begin, end = self._shard(number).offsets[index - self._document_starts[number] :][:2].tolist()
        return self._token_starts[number] + begin, end - begin

    def document_at(self, token: int) -> int:
        """The number of the document that token number `token` of the stream belongs to. Raises as `document`."""
        if not 0 <= token < self.tokens:
            raise IndexError(f"token {token} of {self.tokens} in {self.path}")
        number = bisect_right(self._token_starts, token) - 1
        row = np.searchsorted(self._shard(number).offsets, token - self._token_starts[number], side="right") - 1
        return self._document_starts[number] + int(row)

    def document_lengths(self) -> np.ndarray:
        """int64 [documents]: the tokens in each document. Reads every shard's offsets. Raises as `read`."""
        lengths = [np.diff(self._shard(number).offsets) for number in range(len(self.manifest.shards))]
        return np.concatenate([np.empty(0, np.int64), *lengths])

    def count_sources(self) -> Counter[str]:
        """How many documents come from each source. Reads every shard's sources. Raises as `read`."""
        found: Counter[str] = Counter()
        for number in range(len(self.manifest.shards)):
            for pair in self._shard(number).sources.value_counts().to_pylist():
                found[pair["values"]] += pair["counts"]
        return found

    def load_tokenizer(self) -> Tokenizer:
        """The tokenizer that made the dataset, from the copy in its folder.

        Raises:
            DataError: it is missing, damaged, or not the one the dataset was made with.
        """
        file = self.manifest.tokenizer.file
        tokenizer = load_tokenizer(self.path / file if self._remote is None else self._remote.tokenizer(file))
        check_tokenizer(self, tokenizer)
        return tokenizer

    @property
    def is_remote(self) -> bool:
        """Whether it lies behind a URL."""
        return self._remote is not None

    def shards_of_documents(self, first: int, last: int) -> range:
        """The shards that hold the documents numbered `first` … `last` - 1."""
        begin = bisect_right(self._document_starts, first) - 1
        return range(begin, bisect_left(self._document_starts, last, begin))

    def shards_of(self, start: int, length: int) -> range:
        """The numbers of the shards that the window lies in. Raises IndexError as `read`."""
        self._check_window(start, length)
        if length == 0:
            return range(0)
        return range(bisect_right(self._token_starts, start) - 1, bisect_left(self._token_starts, start + length))

    def prefetch(self, shards: Iterable[int]) -> None:
        """Begin to fetch these shards, in this order, in a thread, in the place of those of an earlier call.

        As much as half of the cache is filled in one call, and at most 4 GiB; call again as reading goes on: what
        is there already costs nothing. Does nothing for a dataset on disk.
        """
        if self._remote is not None:
            self._remote.prefetch(shards)

    def close(self) -> None:
        """End the thread that fetches, if any; what was read stays valid."""
        if self._remote is not None:
            self._remote.close()

    def _parts(self, start: int, length: int) -> Iterator[tuple[Shard, int, int]]:
        """The shards a window lies in, each with the window's first and last + 1 token in it."""
        self._check_window(start, length)
        end = start + length
        number = bisect_right(self._token_starts, start) - 1
        while start < end:
            origin, border = self._token_starts[number], self._token_starts[number + 1]
            last = min(end, border)
            yield self._shard(number), start - origin, last - origin
            start, number = last, number + 1

    def _check_window(self, start: int, length: int) -> None:
        if start < 0 or length < 0 or start + length > self.tokens:
            raise IndexError(f"tokens {start} to {start + length} of {self.tokens} in {self.path}")

    def _open(self, number: int) -> Shard:
        record, dtype = self.manifest.shards[number], self.manifest.dtype
        path = self.path / record.file
        if self._remote is None:
            return Shard(path, record, dtype)
        with self._remote.shard(number) as copy:
            try:
                return Shard(copy, record, dtype, path)
            except DataError:
                if not self._remote.drop_if_damaged(number):
                    raise
        with self._remote.shard(number) as copy:
            return Shard(copy, record, dtype, path)


def _starts(counts: np.ndarray) -> list[int]:
    """0 and the running sums: a list, which `bisect` searches faster than numpy does for one number."""
    return [0, *np.cumsum(counts).tolist()]


def open_dataset(path: str | Path, cache: Cache | None = None, retry: Retry | None = None) -> TokenDataset:
    """Open the dataset in the folder `path`, or behind the URL.

    Reads `dataset.json` and the list of the folder's files, nothing of their contents. Of more than 10,000 shards
    only the names are looked at, and behind a URL not these either: there a wrong file is told when it is opened.

    Args:
        path: A folder, or a URL that fsspec can read.
        cache: Where the shards behind a URL are kept; default: 64 GiB in the user's cache folder.
        retry: How often a server is asked.

    Raises:
        DataError: no dataset there, of another format version, or a shard missing or of another size than recorded;
            behind a URL also no access, no answer, or no package that speaks with it.
    """
    folder = remote_place(path) if isinstance(path, str) else path
    if is_local(folder):
        manifest = read_manifest(folder)
        check_files(folder, manifest, local_sizes(folder, look_at_sizes=len(manifest.shards) <= LOOKED_AT))
        return TokenDataset(folder, manifest)
    remote = RemoteFolder(folder, retry or Retry())
    manifest = parse_manifest(remote.read(MANIFEST), str(folder / MANIFEST))
    shards = RemoteShards(remote, manifest, cache or Cache())
    if len(manifest.shards) <= LOOKED_AT and (sizes := remote.sizes()) is not None:
        check_files(folder, manifest, sizes)
    return TokenDataset(folder, manifest, shards)


def check_tokenizer(dataset: TokenDataset, tokenizer: Tokenizer) -> None:
    """Raises:
    DataError: `tokenizer` is not the one that made the dataset.
    """
    if tokenizer.fingerprint != dataset.manifest.tokenizer.fingerprint:
        raise DataError(
            f"{tokenizer.path}: not the tokenizer that made {dataset.path}; use the copy that lies in that folder "
            f"({dataset.manifest.tokenizer.file}), or prepare the data again"
        )
