"""Lines out of a compressed file, which can be read from its beginning alone."""

from collections.abc import Iterator

import pyarrow as pa

from bigtrain.errors import DataError
from bigtrain.prepare.inputs import InputFile
from bigtrain.prepare.plan import PIECE_BYTES, one_line

_BLOCK = 2**16
"""Bytes decompressed at a time: so many at most are lost before a damage."""


def open_compressed(file: InputFile) -> tuple[pa.NativeFile, pa.NativeFile]:
    """The file as it is, and what it decompresses to. Raises DataError if it cannot be opened."""
    try:
        raw = pa.OSFile(str(file.path))
    except OSError as error:
        raise DataError(f"{file.path}: cannot be read ({error.strerror or one_line(error)})") from error
    return raw, pa.CompressedInputStream(raw, file.compression)


def whole_lines(stream: pa.NativeFile, limit: int) -> Iterator[bytes]:
    """The content of `stream` in pieces of about PIECE_BYTES, whole lines each.

    Of a line longer than `limit` only `limit + 1` bytes are kept, and no more are ever held.

    Raises:
        OSError: the data are damaged; every whole line before that was given.
    """
    held = bytearray()
    done = 0  # bytes of it that are whole lines
    skipping = False
    try:
        while block := stream.read(_BLOCK):
            if skipping:
                end = block.find(b"\n")
                if end < 0:
                    continue
                block, skipping = block[end:], False
            begin = len(held)
            held += block
            done = held.rfind(b"\n", begin) + 1 or done
            if len(held) - done > limit:
                del held[done + limit + 1 :]
                skipping = True
            if done >= PIECE_BYTES:
                yield bytes(held[:done])
                del held[:done]
                done = 0
    except OSError:
        if done:
            yield bytes(held[:done])
        raise
    if held:
        yield bytes(held)
