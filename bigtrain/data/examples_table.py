"""Tables of examples: CSV, JSON lines, Parquet and Arrow, some of whose columns are wanted."""

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from bigtrain.errors import DataError

_COMPRESSED = (".gz", ".zst", ".bz2")


@dataclass(frozen=True)
class Table:
    """Columns by name, as lists of Python values."""

    rows: int
    place: str
    """What a row is called: `row`, `line`; they count from 1, without a header."""
    columns: dict[str, list[Any]]

    def places(self) -> Iterator[str]:
        """Where each row stands."""
        return (f"{self.place} {number}" for number in range(1, self.rows + 1))

    def column(self, name: str | None) -> Sequence[Any]:
        """A column; of one that the file does not have, None everywhere."""
        return self.columns.get(name or "", [None] * self.rows)


def read_table(path: Path, names: Sequence[str], may_miss: Sequence[str] = ()) -> Table:
    """The columns `names` of a table: `.csv`, `.tsv`, `.jsonl` (these also compressed), `.parquet` or `.arrow`.

    Args:
        path: The file; its name tells its kind.
        names: Columns that must be there. In JSON lines a key may be missing from some lines, not from all.
        may_miss: Columns that are read where they are there.

    Raises:
        DataError: It cannot be read, is of another kind, or lacks a column.
    """
    suffix = Path(path.stem).suffix if path.suffix in _COMPRESSED else path.suffix
    reader = _READERS.get(suffix)
    if reader is None:
        raise DataError(
            f"{path}: a table of examples is {', '.join(_READERS)}, by the end of its name; this one is none of them"
        )
    try:
        table = reader(path, [*names, *may_miss])
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({' '.join(str(error).split())})") from None
    for name in names:
        if name not in table.columns:
            there = list(table.columns)
            near = get_close_matches(name, there, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise DataError(
                f"{path}: has no column {name!r}; {hint}it has {', '.join(map(repr, there)) or 'none at all'}"
            )
    return table


def _delimited(path: Path, names: Sequence[str], delimiter: str) -> Table:
    """All values are text: a class called 01, or a text of digits, stays what it is."""
    header = pa.csv.open_csv(
        pa.input_stream(str(path), compression="detect"),
        parse_options=pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
    ).schema.names
    table = pa.csv.read_csv(
        pa.input_stream(str(path), compression="detect"),
        parse_options=pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=pa.csv.ConvertOptions(column_types=dict.fromkeys(header, pa.string())),
    )
    return _of_arrow(table, names)


def _csv(path: Path, names: Sequence[str]) -> Table:
    return _delimited(path, names, ",")


def _tsv(path: Path, names: Sequence[str]) -> Table:
    return _delimited(path, names, "\t")


def _json_lines(path: Path, names: Sequence[str]) -> Table:
    rows: list[dict[str, Any]] = []
    with pa.input_stream(str(path), compression="detect") as stream:
        for number, line in enumerate(io.TextIOWrapper(stream, encoding="utf-8-sig"), 1):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"line {number} is not JSON: {error}") from None
            if not isinstance(row, dict):
                raise ValueError(f"line {number} is no JSON object")
            rows.append(row)
    there = dict.fromkeys(key for row in rows for key in row)
    return Table(len(rows), "line", {name: [row.get(name) for row in rows] if name in names else [] for name in there})


def _parquet(path: Path, names: Sequence[str]) -> Table:
    return _of_arrow(pa.parquet.read_table(path), names)


def _arrow(path: Path, names: Sequence[str]) -> Table:
    with pa.memory_map(str(path)) as file:
        try:
            table = pa.ipc.open_file(file).read_all()
        except pa.ArrowInvalid:  # as a stream, which is how `datasets` saves
            file.seek(0)
            table = pa.ipc.open_stream(file).read_all()
        return _of_arrow(table, names)


def _of_arrow(table: pa.Table, names: Sequence[str]) -> Table:
    columns = {name: table.column(name).to_pylist() if name in names else [] for name in table.column_names}
    return Table(table.num_rows, "row", columns)


_READERS = {
    ".csv": _csv,
    ".tsv": _tsv,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".parquet": _parquet,
    ".arrow": _arrow,
}
