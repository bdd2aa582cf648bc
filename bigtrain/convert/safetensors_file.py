"""Safetensors files written tensor by tensor, in any order, by several threads.

The format (https://github.com/huggingface/safetensors): the header's length in 8 bytes, the header in JSON, the bytes
of the tensors at the offsets that it tells. The library writes whole files only, of tensors that are all in memory.
"""

import json
import os
import struct
from collections.abc import Iterable, Mapping
from functools import reduce
from pathlib import Path

import torch
from torch import Tensor

from bigtrain.convert.stream import fresh

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""What weights may be saved in, by the names that the format has for it."""
_PIECE = 1 << 19
"""Numbers that are brought into the file's type and written at a time: they stay in the processor's cache."""
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def widest(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """A type that holds the numbers of all of these exactly; of none float32."""
    return reduce(torch.promote_types, found) if (found := set(dtypes)) else torch.float32


class TensorFile:
    """A file whose tensors are known by name, shape and type, and come one by one."""

    def __init__(self, path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> None:
        """Raises:
        OSError: It cannot be written, or is larger than what is free.
        """
        self._shapes, self._dtype = dict(shapes), dtype
        self._offsets: dict[str, int] = {}
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, shape in shapes.items():
            begin, end = end, end + torch.Size(shape).numel() * dtype.itemsize
            header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
            self._offsets[name] = begin
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        self._begin = 8 + len(text)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            os.pwrite(self._file, struct.pack("<Q", len(text)) + text, 0)
            os.ftruncate(self._file, self._begin + end)
        except OSError:
            self.close()
            raise

    def write(self, name: str, values: Tensor) -> None:
        """Write one tensor; threads may write at the same time.

        Raises:
            OSError: The disk is full.
        """
        assert tuple(values.shape) == self._shapes[name]
        if not values.is_contiguous():
            values = fresh(values.shape, values.dtype).copy_(values)
        offset = self._begin + self._offsets[name]
        for piece in values.reshape(-1).split(_PIECE):
            content = memoryview(piece.to(self._dtype).view(torch.uint8).numpy())
            while content:
                count = os.pwrite(self._file, content, offset)
                content, offset = content[count:], offset + count

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)
