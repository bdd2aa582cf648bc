"""Documents of the inputs as texts: which are held out, and a sample to train a tokenizer on."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from bigtrain.prepare.inputs import find_files
from bigtrain.prepare.plan import Unit, cut_finely
from bigtrain.prepare.reading import Reject, errands, read

MAX_DOCUMENT_BYTES = 64_000_000
"""What is larger is no document. SentencePiece needs about 100 bytes of memory for one of text."""


def is_held_out(text: str, fraction: float) -> bool:
    """Whether a document belongs to the held-out `fraction`: decided by a hash of its text, so that equal
    documents lie on one side whatever else is in the inputs."""
    if not fraction:
        return False
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

    With `max_bytes`, a sample of so many bytes of UTF-8 at most: files (or pieces of large ones) in the
    order of a hash of their names, always the same. `held_out_fraction` leaves out what `prepare` holds out
    for that `validation_fraction`.

    Raises:
        DataError: as `find_files`, `make_plan` and `read`.
    """
    units = cut_finely(find_files(inputs, pattern, exclude), text_key)
    remaining = float("inf") if max_bytes is None else max_bytes
    if max_bytes is not None:
        units.sort(key=_hash)
    for errand in (errand for unit in units for errand in errands((unit,), text_key, MAX_DOCUMENT_BYTES)):
        for document in read(errand, text_key, MAX_DOCUMENT_BYTES):
            if isinstance(document, Reject) or is_held_out(document.text, held_out_fraction):
                continue
            encoded = document.text.encode()
            if len(encoded) >= remaining:
                yield encoded[: int(remaining)].decode(errors="ignore")
                return
            remaining -= len(encoded)
            yield document.text


def _hash(unit: Unit) -> bytes:
    return hashlib.sha256(f"{unit.file.source}:{unit.start}".encode()).digest()
