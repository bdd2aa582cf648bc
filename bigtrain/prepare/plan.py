"""How the work is cut: into parts of about a shard each, by the inputs and the options alone.

Neither the number of processes nor that of tasks has a say, so that any of them makes the same shards, and one
that was killed can go on where it was.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from bigtrain.errors import DataError
from bigtrain.prepare.inputs import InputFile, Kind

PIECE_BYTES = 2**20
"""About so much text is one errand of a worker."""

_BYTES_PER_TOKEN = 3
"""On the low side, so that most parts fit one shard."""
_COMPRESSED_TO = 4
"""Bytes of text in one of a compressed file, about."""


@dataclass(frozen=True)
class Unit:
    """A stretch of a file that is read in one go."""

    file: InputFile
    start: int
    end: int
    """Bytes of a plain file, row groups of a Parquet file, record batches of an Arrow file, `start` … `end - 1`.
    A line belongs to the stretch that its first byte is in."""
    size: int
    """Bytes of text in it, about."""
    first_record: int = 0
    """Records of the file before it; of a plain file of lines that is not known and 0."""
    broken: str | None = None
    """Why nothing of it can be read."""


Part = tuple[Unit, ...]


@dataclass(frozen=True)
class Plan:
    """The parts in order, and what they follow from."""

    parts: list[Part]
    options: Mapping[str, Any]
    fingerprint: str
    """SHA-256 of the options and the inputs' names, sizes and times of change."""


def make_plan(files: Sequence[InputFile], options: Mapping[str, Any], text_key: str, tokens_per_shard: int) -> Plan:
    """Cut `files` into parts. `options` are what the output depends on beside the inputs.

    Raises:
        DataError: a Parquet or Arrow file has no column `text_key` of strings.
    """
    part_bytes = max(_BYTES_PER_TOKEN * tokens_per_shard, PIECE_BYTES)
    inputs = [(file.source, file.size, file.modified) for file in files]
    content = json.dumps([dict(options), inputs], sort_keys=True)
    units = (unit for file in files for unit in _units(file, text_key, part_bytes))
    return Plan(list(join(units, part_bytes)), options, hashlib.sha256(content.encode()).hexdigest())


def cut_finely(files: Sequence[InputFile], text_key: str) -> list[Unit]:
    """The smallest stretches that can be read without their neighbours. Raises as `make_plan`."""
    return [unit for file in files for unit in _units(file, text_key, PIECE_BYTES)]


def check_text_column(schema: pa.Schema, text_key: str, file: InputFile) -> None:
    """Raises:
    DataError: the column `text_key` is missing, or of another type than text.
    """
    number = schema.get_field_index(text_key)
    if number < 0:
        raise DataError(
            f"{file.path}: no column {text_key!r}, only {', '.join(schema.names) or 'none'}; name the column of the "
            f"text with --text-key, or leave the file out with --exclude {file.path.name}"
        )
    kind = schema.field(number).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise DataError(f"{file.path}: column {text_key!r} holds {kind}, not text; name another with --text-key")


def text_leaf(file: pa.parquet.ParquetFile, text_key: str) -> int:
    """The number of the column `text_key` among all that a Parquet file's row groups hold, nested ones included."""
    return [file.schema.column(number).path for number in range(len(file.schema))].index(text_key)


def open_arrow(file: InputFile) -> Iterator[pa.RecordBatch]:
    """The record batches of an Arrow IPC file or stream, mapped; the first is empty and tells the schema.

    Raises:
        pa.ArrowException, OSError: it is damaged.
    """
    mapped = pa.memory_map(str(file.path))
    is_file = mapped.read(6) == b"ARROW1"
    mapped.seek(0)
    reader = pa.ipc.open_file(mapped) if is_file else pa.ipc.open_stream(mapped)
    yield pa.RecordBatch.from_pylist([], reader.schema)
    if is_file:
        yield from map(reader.get_batch, range(reader.num_record_batches))
    else:
        yield from reader


def _units(file: InputFile, text_key: str, part_bytes: int) -> Iterator[Unit]:
    if file.compression:
        yield Unit(file, 0, file.size, file.size * _COMPRESSED_TO)
    elif file.kind is Kind.lines and file.size:
        step = max(part_bytes // 4 // PIECE_BYTES, 1) * PIECE_BYTES
        for start in range(0, file.size, step):
            end = min(start + step, file.size)
            yield Unit(file, start, end, end - start)
    elif file.kind is Kind.parquet:
        yield from _row_groups(file, text_key)
    elif file.kind is Kind.arrow:
        yield from _record_batches(file, text_key)
    else:
        yield Unit(file, 0, file.size, file.size)


def _row_groups(file: InputFile, text_key: str) -> Iterator[Unit]:
    try:
        with pa.parquet.ParquetFile(file.path) as opened:
            check_text_column(opened.schema_arrow, text_key, file)
            column = text_leaf(opened, text_key)
            groups = [opened.metadata.row_group(number) for number in range(opened.num_row_groups)]
    except (pa.ArrowException, OSError) as error:
        yield Unit(file, 0, 0, file.size, broken=f"not a Parquet file, or damaged: {one_line(error)}")
        return
    first_record = 0
    for number, group in enumerate(groups):
        yield Unit(file, number, number + 1, group.column(column).total_uncompressed_size, first_record)
        first_record += group.num_rows
    if not groups:
        yield Unit(file, 0, 0, file.size, broken="empty")


def _record_batches(file: InputFile, text_key: str) -> Iterator[Unit]:
    number = first_record = 0
    try:
        batches = open_arrow(file)
        check_text_column(next(batches).schema, text_key, file)
        for number, batch in enumerate(batches, 1):
            size = batch.column(text_key).get_total_buffer_size() if batch.num_rows else 0
            yield Unit(file, number - 1, number, min(size, file.size), first_record)
            first_record += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        reason = f"no more of this Arrow file can be read: {one_line(error)}"
        yield Unit(file, number, number, 0, first_record, broken=reason)
        return
    if not first_record:
        yield Unit(file, number, number, file.size, broken="empty")


def join(units: Iterable[Unit], part_bytes: int) -> Iterator[Part]:
    """Parts of about `part_bytes` of text, of neighbours in `units`. One that is larger stands alone."""
    part: list[Unit] = []
    room = part_bytes
    for unit in units:
        if part and unit.size > room:
            yield tuple(part)
            part, room = [], part_bytes
        last = part[-1] if part else None
        if last and not (last.broken or unit.broken) and last.file is unit.file and last.end == unit.start:
            part[-1] = replace(last, end=unit.end, size=last.size + unit.size)
        else:
            part.append(unit)
        room -= unit.size
    if part:
        yield tuple(part)


def one_line(error: Exception) -> str:
    """The first line of an error's message; Arrow's and the system's can be long."""
    return str(error).split("\n")[0].strip()
