"""The shards of a dataset behind a URL, out of the cache."""

import threading
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO

from bigtrain.data.cache import Cache
from bigtrain.data.manifest import Manifest, by_column
from bigtrain.data.prefetch import Prefetcher
from bigtrain.data.remote import RemoteFolder

_AHEAD_BYTES = 2**32
"""Of shards that one call of `prefetch` fetches at most."""


class RemoteShards:
    """Shards as local files, fetched when they are first asked for.

    Raises:
        DataError: the cache cannot hold the largest of them.
    """

    def __init__(self, folder: RemoteFolder, manifest: Manifest, cache: Cache) -> None:
        self._folder = folder
        self._manifest = manifest
        self._cache = cache
        self._prefetcher = Prefetcher(self._fetch_ahead)
        cache.check_room_for(int(by_column(manifest.shards).size_bytes.max(initial=0)), str(folder.path))

    def __reduce__(self) -> tuple[Any, ...]:
        """For the other ranks, each with a thread of its own."""
        return RemoteShards, (self._folder, self._manifest, self._cache)

    def shard(self, number: int, stop: threading.Event | None = None) -> AbstractContextManager[Path]:
        """The file of a shard, which stays there while the block lasts. Raises DataError, and Cancelled by `stop`."""
        record = self._manifest.shards[number]

        def fetch(file: BinaryIO) -> None:
            self._folder.fetch_right(record.file, record.size_bytes, record.sha256, file, stop)

        return self._cache.file(record.sha256, record.size_bytes, fetch, stop)

    def drop_if_damaged(self, number: int) -> bool:
        """Remove a shard whose copy in the cache is not what arrived; whether it was so."""
        return self._cache.drop_if_damaged(self._manifest.shards[number].sha256)

    def tokenizer(self, file: str) -> Path:
        """A copy of the tokenizer, in a folder with what may lie beside it. Raises DataError."""
        names = [file]
        if file.endswith(".json") and self._folder.has("tokenizer_config.json"):
            names.append("tokenizer_config.json")
        return self._cache.keep({name: self._folder.read(name) for name in names}) / file

    def prefetch(self, numbers: Iterable[int]) -> None:
        """Fetch these in a thread, as far as there is room for what is ahead."""
        self._prefetcher.start(self._within_room(numbers))

    def close(self) -> None:
        """End the thread."""
        self._prefetcher.close()

    def _fetch_ahead(self, number: int, stop: threading.Event) -> None:
        with self.shard(number, stop):
            pass

    def _within_room(self, numbers: Iterable[int]) -> Iterator[int]:
        room = min(_AHEAD_BYTES, self._cache.max_bytes // 2)
        for number in numbers:
            room -= self._manifest.shards[number].size_bytes
            if room < 0:
                return
            yield number
