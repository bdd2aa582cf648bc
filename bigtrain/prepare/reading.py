"""The documents of a file, whatever its kind. What is no clean text is not an error but a `Reject` with its reason:
one bad record must not stop a million good ones.

Reading is in two steps. `errands` says what to read, piece by piece, and reads itself only what cannot be entered in
the middle (compressed lines, Arrow's formats); `read` makes documents of one piece, in any process.
"""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from bigtrain.errors import DataError
from bigtrain.prepare.columns import Rows, row_texts
from bigtrain.prepare.columns import read_rows as _read_rows
from bigtrain.prepare.inputs import InputFile, Kind
from bigtrain.prepare.lines import open_compressed, whole_lines
from bigtrain.prepare.plan import PIECE_BYTES, Part, Unit, one_line


@dataclass(frozen=True)
class Text:
    """A document: its text, the file it is from, and its record number there, from 0."""

    text: str
    source: str
    position: int


@dataclass(frozen=True)
class Reject:
    """A record that holds no usable text, and why."""

    source: str
    position: int
    reason: str


@dataclass(frozen=True)
class Files:
    """Whole files, small ones together: a worker's errand must be worth its way."""

    files: tuple[InputFile, ...]
    size: int


@dataclass(frozen=True)
class Range:
    """The lines that begin in bytes `start` … `end - 1` of a plain file. How many lines are before is not known:
    positions count from the first of these."""

    file: InputFile
    start: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class Lines:
    """Lines that were read already."""

    source: str
    first_record: int
    content: bytes
    size: int


@dataclass(frozen=True)
class Broken:
    """A stretch of a file that cannot be read."""

    reject: Reject
    size: int


Errand = Files | Range | Lines | Rows | Broken


def errands(part: Part, text_key: str, limit: int) -> Iterator[Errand]:
    """The pieces of a part, in order. A record is cut behind `limit` bytes, for `read` to reject it.

    Raises:
        DataError: a file cannot be opened.
    """
    group: list[InputFile] = []
    size = 0
    for unit in part:
        whole = not unit.broken and _is_whole(unit)
        if whole:
            group.append(unit.file)
            size += unit.size
        if group and (not whole or size >= PIECE_BYTES):
            yield Files(tuple(group), size)
            group, size = [], 0
        if not whole:
            yield from _pieces(unit, text_key, limit)
    if group:
        yield Files(tuple(group), size)


def read(errand: Errand, text_key: str, limit: int) -> Iterator[Text | Reject]:
    """The documents of a piece, and what stands in the place of one: one or the other for every record.

    `text_key` is the key, or the column, that holds the text. What is larger than `limit` bytes is rejected.

    Raises:
        DataError: a file cannot be read.
    """
    match errand:
        case Broken():
            yield errand.reject
        case Files():
            for file in errand.files:
                yield from _read_file(file, text_key, limit)
        case Range():
            content = _read_range(errand, limit)
            if content:
                yield from _read_lines(content, errand.file.source, 0, text_key, limit)
        case Lines():
            yield from _read_lines(errand.content, errand.source, errand.first_record, text_key, limit)
        case Rows():
            for position, value in enumerate(row_texts(errand), errand.first_record):
                yield _document(value, errand.source, position, None, limit)


def _is_whole(unit: Unit) -> bool:
    """Whether a worker reads the whole file at once."""
    if unit.file.kind is Kind.text:
        return True
    is_small = (unit.start, unit.end) == (0, unit.file.size) and unit.size <= PIECE_BYTES
    return unit.file.kind is Kind.lines and not unit.file.compression and is_small


def _pieces(unit: Unit, text_key: str, limit: int) -> Iterator[Errand]:
    """The pieces of a unit that is more than one, or that this process has to read."""
    if unit.broken:
        yield Broken(Reject(unit.file.source, unit.first_record, unit.broken), unit.size)
    elif unit.file.kind is not Kind.lines:
        try:
            for rows in _read_rows(unit, text_key, limit):
                if rows.broken is None:
                    yield rows
                else:
                    yield Broken(Reject(rows.source, rows.first_record, rows.broken), rows.size)
        except OSError as error:
            raise cannot_read(unit.file, error) from error
    elif unit.file.compression:
        yield from _compressed_lines(unit, limit)
    else:
        for start in range(unit.start, unit.end, PIECE_BYTES):
            yield Range(unit.file, start, min(start + PIECE_BYTES, unit.end))


def _compressed_lines(unit: Unit, limit: int) -> Iterator[Errand]:
    source, record, told = unit.file.source, 0, 0
    factor = unit.size / max(unit.file.size, 1)
    raw, stream = open_compressed(unit.file)
    with raw, stream:
        try:
            for content in whole_lines(stream, limit):
                size, told = int((raw.tell() - told) * factor), raw.tell()
                yield Lines(source, record, content, size)
                record += count_lines(content)
        except OSError as error:
            reason = f"{unit.file.compression} data damaged or cut, nothing after it was read: {one_line(error)}"
            yield Broken(Reject(source, record, reason), 0)
            return
    if not record:
        yield Broken(Reject(source, 0, "empty"), unit.size)


def count_lines(content: bytes) -> int:
    """Lines in `content`, the last of which need not have an end."""
    return content.count(b"\n") + (not content.endswith(b"\n"))


def _read_file(file: InputFile, text_key: str, limit: int) -> Iterator[Text | Reject]:
    try:
        with file.path.open("rb") as opened:
            if file.kind is Kind.lines:
                yield from _read_lines(opened.read(), file.source, 0, text_key, limit)
                return
            content = b"" if file.compression else opened.read(limit + 1)
    except OSError as error:
        raise cannot_read(file, error) from error
    if file.compression:
        raw, stream = open_compressed(file)
        with raw, stream:
            try:
                content = stream.read(limit + 1)
            except OSError as error:
                yield Reject(file.source, 0, f"{file.compression} data damaged or cut: {one_line(error)}")
                return
    yield _document(content, file.source, 0, None, limit)


def _read_range(errand: Range, limit: int) -> bytes:
    """The lines of a range; the last may be cut, but not before it is larger than `limit`."""
    try:
        with errand.file.path.open("rb") as file:
            return _lines_between(file, errand.start, errand.end, limit)
    except OSError as error:
        raise cannot_read(errand.file, error) from error


def _lines_between(file: BinaryIO, start: int, end: int, limit: int) -> bytes:
    if start:  # a line begins behind a line's end, the one before `start` included
        file.seek(start - 1)
        content = file.read(end - start + 1)
        begin = content.find(b"\n") + 1
        if not begin or begin == len(content):
            return b""
        content = content[begin:]
    else:
        content = file.read(end)
    if content.endswith(b"\n"):
        return content
    return content + file.readline(limit + 1)


def _read_lines(content: bytes, source: str, first: int, text_key: str, limit: int) -> Iterator[Text | Reject]:
    for position, line in enumerate(content.removesuffix(b"\n").split(b"\n"), first):
        yield _document(line, source, position, text_key, limit)


def _document(
    value: bytes | ValueError | None, source: str, position: int, text_key: str | None, limit: int
) -> Text | Reject:
    """A record's document: of a line of JSON with `text_key`, else of the text itself."""
    try:
        if isinstance(value, ValueError):
            raise value
        if value is None:
            raise ValueError("no text, but null")
        if len(value) > limit:
            raise too_large(limit)
        text = value.decode() if text_key is None else _text_of_line(value, text_key)
        text.encode()  # JSON can spell half a surrogate pair, which is no character
        if not text or text.isspace():
            raise ValueError("empty")
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        return Reject(source, position, f"not UTF-8: {error.reason} at {error.start}")
    except (ValueError, RecursionError) as error:
        return Reject(source, position, str(error))
    return Text(text, source, position)


def too_large(limit: int) -> ValueError:
    """Why a record is rejected that has more than `limit` bytes."""
    return ValueError(f"larger than {limit / 1e6:g} megabytes")


def _text_of_line(line: bytes, text_key: str) -> str:
    """The text in a line of JSON. Raises ValueError with the reason if there is none."""
    decoded = line.decode("utf-8-sig")
    if not decoded.strip():
        raise ValueError("empty")
    try:
        record = json.loads(decoded)
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(record, dict) or text_key not in record:
        raise ValueError(f"no key {text_key!r}")
    text = record[text_key]
    if not isinstance(text, str):
        raise ValueError(f"the value of {text_key!r} is no string")
    return text


def cannot_read(file: InputFile, error: OSError) -> DataError:
    """What to raise where a file cannot be opened."""
    return DataError(f"{file.path}: cannot be read ({error.strerror or one_line(error)})")


class LineCounter:
    """How many lines of a plain file begin before a byte; remembers where it was last."""

    def __init__(self) -> None:
        self._known: tuple[InputFile, int, int] | None = None

    def before(self, file: InputFile, byte: int) -> int:
        """Lines of `file` that begin before `byte`. Raises DataError if it cannot be read."""
        start, count = self._known[1:] if self._known and self._known[0] == file and self._known[1] <= byte else (0, 0)
        try:
            with file.path.open("rb") as opened:
                count += _line_begins(opened, start, byte)
        except OSError as error:
            raise cannot_read(file, error) from error
        self.learn(file, byte, count)
        return count

    def learn(self, file: InputFile, byte: int, count: int) -> None:
        """`count` lines of `file` begin before `byte`."""
        self._known = (file, byte, count)


def _line_begins(file: BinaryIO, start: int, end: int) -> int:
    count = int(start == 0 < end)
    file.seek(max(start - 1, 0), io.SEEK_SET)
    left = end - max(start - 1, 0) - 1  # a line's end at the last byte begins a line behind
    while left > 0 and (block := file.read(min(left, PIECE_BYTES))):
        count += block.count(b"\n")
        left -= len(block)
    return count
