"""Documents of the inputs as texts: which are held out, and a sample to train a tokenizer on."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

from bigtrain.data.held_out import is_held_out
from bigtrain.prepare.inputs import find_files
from bigtrain.prepare.plan import PIECE_BYTES, Part, Unit, cut_finely, join
from bigtrain.prepare.reading import Reject, errands, read

MAX_DOCUMENT_BYTES = 64_000_000
"""What is larger is no document. SentencePiece needs about 100 bytes of memory for one of text."""
_SMALLEST_SHARE = 2**16
"""Bytes that a stretch gives to a sample: less is not worth opening a file."""


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

    With `max_bytes`, a sample of so many bytes of UTF-8 at most, always the same: the inputs are cut into stretches
    of about a megabyte, in the order of a hash of their names, and each gives a share by its size, of 64 KiB at least.
    `held_out_fraction` leaves out what `prepare` holds out for that `validation_fraction`.

    Raises:
        DataError: as `find_files`, `make_plan` and `read`.
    """
    units = cut_finely(find_files(inputs, pattern, exclude), text_key)

    def texts(part: Part) -> Iterator[str]:
        for errand in errands(part, text_key, MAX_DOCUMENT_BYTES):
            for document in read(errand, text_key, MAX_DOCUMENT_BYTES):
                if not isinstance(document, Reject) and not is_held_out(document.text, held_out_fraction):
                    yield document.text

    if max_bytes is None:
        return chain.from_iterable(texts((unit,)) for unit in units)
    return _sample(list(join(sorted(units, key=_hash), PIECE_BYTES)), texts, max_bytes)


def _sample(parts: list[Part], texts: Callable[[Part], Iterator[str]], max_bytes: int) -> Iterator[str]:
    """In rounds: what the short parts leave of their shares, the others give in the next."""
    remaining = max_bytes
    turns = [(part, 0) for part in parts]
    while turns:
        fraction = remaining / max(sum(_size(part) for part, _ in turns), 1)
        unfinished = []
        for part, skipped in turns:
            share = max(fraction * _size(part), _SMALLEST_SHARE)
            for text in islice(texts(part), skipped, None):
                encoded = text.encode()
                if len(encoded) >= remaining:
                    yield encoded[:remaining].decode(errors="ignore")
                    return
                yield text
                skipped += 1
                remaining -= len(encoded)
                share -= len(encoded)
                if share <= 0:
                    unfinished.append((part, skipped))
                    break
        turns = unfinished


def _size(part: Part) -> int:
    return sum(unit.size for unit in part)


def _hash(unit: Unit) -> bytes:
    return hashlib.sha256(f"{unit.file.source}:{unit.start}".encode()).digest()
