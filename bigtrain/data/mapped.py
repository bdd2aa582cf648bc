"""One shard, mapped into memory."""

import functools
from pathlib import Path

import numpy as np
import pyarrow as pa

from bigtrain.data.manifest import MANIFEST, ShardRecord, other_size
from bigtrain.errors import DataError


def schema(dtype: str) -> pa.Schema:
    """The columns of a shard of that type of token."""
    value = pa.from_numpy_dtype(np.dtype(dtype))
    return pa.schema(
        [
            ("tokens", pa.large_list(value)),
            ("source", pa.dictionary(pa.int32(), pa.string())),
            ("position", pa.int64()),
        ]
    )


class Shard:
    """A mapped shard. Nothing of it is read before it is looked at, and offsets and sources are checked
    when they are: a wrong number there would send numpy or Arrow out of the file.

    Raises:
        DataError: the file is damaged, or not the one that was recorded.
    """

    def __init__(self, path: Path, record: ShardRecord, dtype: str, name: Path | None = None) -> None:
        """`name` is what to call it where `path` is a copy."""
        self._path = name or path
        try:
            size = path.stat().st_size
            if size != record.size_bytes:
                raise other_size(self._path, size, record.size_bytes)
            reader = pa.ipc.open_file(pa.memory_map(str(path)))
            if reader.schema != schema(dtype) or reader.num_record_batches != 1:
                raise DataError(f"{self._path}: not a shard of this dataset; its columns are {reader.schema.names}")
            self._batch = reader.get_batch(0)
            self._batch.validate()
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last for a column's name
            raise self._damaged(error) from error
        self.tokens: np.ndarray = self._batch.column("tokens").values.to_numpy()
        if (len(self.tokens), self._batch.num_rows) != (record.tokens, record.documents):
            raise DataError(
                f"{self._path}: holds {len(self.tokens)} tokens of {self._batch.num_rows} documents; "
                f"{MANIFEST} says {record.tokens} of {record.documents}"
            )

    @functools.cached_property
    def offsets(self) -> np.ndarray:
        """int64 [documents + 1]: where documents begin and end in `tokens`."""
        offsets: np.ndarray = self._batch.column("tokens").offsets.to_numpy()
        if offsets[0] != 0 or offsets[-1] != len(self.tokens) or (offsets[1:] < offsets[:-1]).any():
            raise self._damaged("documents overlap")
        return offsets

    @functools.cached_property
    def document_starts(self) -> memoryview:
        """int64 [documents]: where documents begin, for `bisect`, which is quicker in a buffer than in an array."""
        return self.offsets[:-1].data

    @functools.cached_property
    def sources(self) -> pa.DictionaryArray:
        sources = self._batch.column("source")
        try:
            sources.validate(full=True)
            sources.dictionary.validate(full=True)
        except pa.ArrowException as error:
            raise self._damaged(error) from error
        return sources

    @property
    def positions(self) -> pa.Int64Array:
        return self._batch.column("position")

    def _damaged(self, reason: object) -> DataError:
        return DataError(f"{self._path}: damaged shard ({reason}); make it again or restore it")
