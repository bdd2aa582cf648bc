"""Texts out of a column of a Parquet or Arrow file, a few rows at a time."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from bigtrain.prepare.inputs import Kind
from bigtrain.prepare.plan import PIECE_BYTES, Unit, one_line, open_arrow, text_leaf

_ROWS_AT_A_TIME = 4096
"""At most; fewer where they are large."""
_SCHEMA = pa.schema([("text", pa.large_binary())])


@dataclass(frozen=True)
class Rows:
    """Rows that were read already, as an Arrow record batch of bytes."""

    source: str
    first_record: int
    content: bytes
    size: int
    records: int = 0
    too_large: frozenset[int] = frozenset()
    """Rows whose text was left out because it is larger than `limit`."""
    limit: int = 0
    broken: str | None = None
    """Why there is nothing."""


def read_rows(unit: Unit, text_key: str, limit: int) -> Iterator[Rows]:
    """The texts of `unit`, a piece at a time; in the place of rows that cannot be read, why.

    Raises:
        OSError: the file cannot be opened.
    """
    groups = _parquet_groups(unit, text_key) if unit.file.kind is Kind.parquet else _arrow_batches(unit, text_key)
    record = unit.first_record
    for rows, columns in groups:
        read = 0
        try:
            for column in columns:
                for piece in _pieces(column, limit):
                    yield replace(piece, source=unit.file.source, first_record=record + read)
                    read += piece.records
        except (pa.ArrowException, OSError) as error:
            first, last = record + read, record + rows - 1
            reason = f"damaged: records {first} to {last} cannot be read ({one_line(error)})"
            yield Rows(unit.file.source, first, b"", 0, broken=reason)
        record += rows


def row_texts(rows: Rows) -> Iterator[bytes | ValueError | None]:
    """Each row's bytes, or None for null, or why there is nothing."""
    batch = pa.ipc.read_record_batch(pa.py_buffer(rows.content), _SCHEMA)
    for number, value in enumerate(batch.column(0)):
        is_too_large = number in rows.too_large
        yield ValueError(f"larger than {rows.limit / 1e6:g} megabytes") if is_too_large else value.as_py()


def _parquet_groups(unit: Unit, text_key: str) -> Iterator[tuple[int, Iterator[pa.Array]]]:
    """Each row group: how many rows, and their texts little by little."""
    with pa.parquet.ParquetFile(unit.file.path, buffer_size=PIECE_BYTES, pre_buffer=False) as file:
        at_a_time = min(
            max(file.metadata.num_rows * PIECE_BYTES // max(_text_bytes(file, text_key), 1), 1), _ROWS_AT_A_TIME
        )
        for number in range(unit.start, unit.end):
            batches = file.iter_batches(at_a_time, row_groups=[number], columns=[text_key], use_threads=False)
            yield file.metadata.row_group(number).num_rows, (batch.column(0) for batch in batches)


def _text_bytes(file: pa.parquet.ParquetFile, text_key: str) -> int:
    column = text_leaf(file, text_key)
    groups = map(file.metadata.row_group, range(file.num_row_groups))
    return sum(group.column(column).total_uncompressed_size for group in groups)


def _arrow_batches(unit: Unit, text_key: str) -> Iterator[tuple[int, Iterator[pa.Array]]]:
    batches = islice(open_arrow(unit.file), unit.start + 1, unit.end + 1)  # the first is the schema's
    for batch in batches:
        column = batch.column(text_key)
        starts = range(0, len(column), _ROWS_AT_A_TIME)
        yield len(column), (_checked(column).slice(start, _ROWS_AT_A_TIME) for start in starts)


def _checked(column: pa.Array) -> pa.Array:
    """The column, or ArrowInvalid: a wrong index or view would send Arrow out of the mapped file."""
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        column.validate(full=True)
    return column


def _pieces(column: pa.Array, limit: int) -> Iterator[Rows]:
    texts = column.cast(pa.large_string()) if pa.types.is_dictionary(column.type) else column
    texts = texts.cast(pa.large_binary())
    texts.validate(full=True)  # offsets: those of a damaged file could lie outside it
    sizes = pc.fill_null(pc.binary_length(texts), 0).to_numpy()
    too_large = sizes > limit
    if too_large.any():
        texts = pc.if_else(pa.array(too_large), pa.scalar(None, pa.large_binary()), texts)
        sizes = np.where(too_large, 0, sizes)
    ends = sizes.cumsum()
    first = 0
    while first < len(texts):
        before = int(ends[first - 1]) if first else 0
        last = min(int(ends.searchsorted(before + PIECE_BYTES)) + 1, len(texts))
        batch = pa.record_batch([texts.slice(first, last - first)], schema=_SCHEMA)
        out = frozenset(np.flatnonzero(too_large[first:last]).tolist())
        yield Rows("", 0, batch.serialize().to_pybytes(), int(ends[last - 1]) - before, last - first, out, limit)
        first = last
