"""Documents in files: which files, in which order, and the text in them.

A `.jsonl` file has a document a line; any other file is one document. What is no clean text is not an
error but a `Reject` with its reason: one bad file must not stop a million good ones.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from bigtrain.errors import DataError

PIECE_BYTES = 2**20
"""A `.jsonl` file is read in pieces of about so many bytes, whole lines each."""


@dataclass(frozen=True)
class Piece:
    """Bytes `start` … `end - 1` of a file: a whole text file, or whole lines of a `.jsonl` file."""

    path: Path
    source: str
    """The file's name below the input folder, that folder's own name first."""
    start: int
    end: int
    first_record: int


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


def find_pieces(inputs: Sequence[str | Path], pattern: str = "*", exclude: Sequence[str] = ()) -> Iterator[Piece]:
    """The files of `inputs` in pieces; an input is a file, or a folder that is searched through in the order of names.

    Of a folder's files those count whose name matches the glob `pattern`; whatever has a name that matches
    one of `exclude`, folders included, is passed over.

    Raises:
        DataError: an input is missing or unreadable, or no file is found.
    """
    found = False
    for given in inputs:
        root = Path(given)
        if not root.exists():
            raise DataError(f"{root}: no such file or folder")
        for path, source in _files(root, pattern, exclude):
            found = True
            try:
                yield from _cut(path, source)
            except OSError as error:
                raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    if not found:
        raise DataError(f"no file matches {pattern!r} in {', '.join(map(str, inputs)) or 'no input at all'}")


def read_piece(piece: Piece, text_key: str = "text") -> Iterator[Text | Reject]:
    """The documents of a piece. The text of a `.jsonl` record is the value of its key `text_key`.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with piece.path.open("rb") as file:
            file.seek(piece.start)
            content = file.read(piece.end - piece.start)
    except OSError as error:
        raise DataError(f"{piece.path}: cannot be read ({error.strerror})") from error
    is_jsonl = piece.path.suffix == ".jsonl"
    records = content.removesuffix(b"\n").split(b"\n") if is_jsonl else [content]
    for position, record in enumerate(records, piece.first_record):
        try:
            text = _text_of_line(record, text_key) if is_jsonl else record.decode()
            text.encode()  # JSON can spell half a surrogate pair, which is no character
            if not text or text.isspace():
                raise ValueError("empty")
        except (UnicodeDecodeError, UnicodeEncodeError) as error:
            yield Reject(piece.source, position, f"not UTF-8: {error.reason} at {error.start}")
        except (ValueError, RecursionError) as error:
            yield Reject(piece.source, position, str(error))
        else:
            yield Text(text, piece.source, position)


def is_held_out(text: str, fraction: float) -> bool:
    """Whether a document belongs to the held-out `fraction`: decided by a hash of its text, so that equal
    documents lie on one side."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest) < fraction * 2**64


def read_documents(
    inputs: Sequence[str | Path],
    *,
    max_bytes: int | None = None,
    pattern: str = "*",
    exclude: Sequence[str] = (),
    text_key: str = "text",
    held_out_fraction: float = 0.0,
) -> Iterator[str]:
    """The texts of `inputs`, as `prepare` finds them, to train a tokenizer on.

    With `max_bytes`, a sample of so many bytes of UTF-8 at most: files (or pieces of `.jsonl` files) in the
    order of a hash of their names, always the same. `held_out_fraction` leaves out what `prepare` holds out
    for that `validation_fraction`.

    Raises:
        DataError: as `find_pieces` and `read_piece`.
    """
    pieces = find_pieces(inputs, pattern, exclude)
    if max_bytes is None:
        remaining = float("inf")
    else:
        remaining = max_bytes
        pieces = iter(
            sorted(pieces, key=lambda piece: hashlib.sha256(f"{piece.source}:{piece.start}".encode()).digest())
        )
    for piece in pieces:
        for document in read_piece(piece, text_key):
            if isinstance(document, Reject) or is_held_out(document.text, held_out_fraction):
                continue
            encoded = document.text.encode()
            if len(encoded) >= remaining:
                yield encoded[: int(remaining)].decode(errors="ignore")
                return
            remaining -= len(encoded)
            yield document.text


def _files(root: Path, pattern: str, exclude: Sequence[str]) -> list[tuple[Path, str]]:
    """The files of one input, with their sources."""
    if root.is_file():
        return [(root, root.name)]
    files = []
    for path in root.rglob("*"):
        inside = path.relative_to(root)
        excluded = any(fnmatchcase(part, glob) for part in inside.parts for glob in exclude)
        if not excluded and fnmatchcase(path.name, pattern) and path.is_file():
            source = f"{root.resolve().name}/{inside.as_posix()}"
            files.append((path, source.encode(errors="backslashreplace").decode()))  # a name need not be UTF-8
    return sorted(files, key=lambda file: file[1])


def _cut(path: Path, source: str) -> Iterator[Piece]:
    size = path.stat().st_size
    if path.suffix != ".jsonl" or size == 0:
        yield Piece(path, source, 0, size, 0)
        return
    start = first_record = 0
    with path.open("rb") as file:
        while block := file.read(PIECE_BYTES):
            block += file.readline()
            yield Piece(path, source, start, start + len(block), first_record)
            start += len(block)
            first_record += block.count(b"\n")


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
