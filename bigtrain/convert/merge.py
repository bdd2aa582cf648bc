"""A LoRA adapter merged into a Hugging Face folder: a copy of it, in which the adapted weights are others."""

import json
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bigtrain.convert.adapter import read_adapter
from bigtrain.convert.output import written_aside
from bigtrain.convert.safetensors_file import DTYPES
from bigtrain.errors import ConversionError


def merge_adapter(folder: Path, adapter: Path, output: Path) -> int:
    """Write the folder with the adapter merged into its weights, in their own type, one weight at a time.

    Args:
        folder: A Hugging Face folder with safetensors.
        adapter: A folder as `peft` saves an adapter.
        output: The folder to make; new or empty.

    Returns:
        How many weights were adapted.

    Raises:
        ConversionError: A file is missing or damaged, it is no plain LoRA, or not for this model. Nothing is left
            behind.
    """
    read = read_adapter(adapter)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ConversionError(f"{folder} holds no weights (*.safetensors)")
    headers = {file.name: _header(file) for file in files}
    places = {name: file for file, (_, header) in headers.items() for name in header}
    read.check_names(places)
    with written_aside(output) as aside:
        shutil.copytree(folder, aside, dirs_exist_ok=True, ignore=shutil.ignore_patterns("parity.json", ".*"))
        for name in read.pairs:
            begin, header = headers[places[name]]
            _rewrite(aside / places[name], begin, header[name], partial(read.merged, name))
    return len(read.pairs)


@contextmanager
def with_adapter(folder: Path, adapter: Path | None, output: Path) -> Iterator[Path]:
    """The folder itself, or, where there is an adapter, one with it merged, which lies beside `output` for a while.

    Raises:
        ConversionError: As of `merge_adapter`.
    """
    if adapter is None:
        yield folder
        return
    parent = output.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=parent, prefix=f".{output.name}.") as aside:
        merged = Path(aside) / folder.resolve().name
        merge_adapter(folder, adapter, merged)
        yield merged


def _header(file: Path) -> tuple[int, dict[str, Any]]:
    """Where the tensors of a safetensors file begin, and what it says of each."""
    try:
        with file.open("rb") as content:
            (length,) = struct.unpack("<Q", content.read(8))
            header = json.loads(content.read(length))
            header.pop("__metadata__", None)
            end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (OSError, ValueError, KeyError, TypeError, struct.error, MemoryError) as error:
        raise ConversionError(f"{file} is damaged: {error!r}") from None
    if file.stat().st_size != 8 + length + end:
        raise ConversionError(f"{file} is damaged: it has {file.stat().st_size} bytes, and its header says otherwise")
    return 8 + length, header


def _rewrite(file: Path, begin: int, entry: dict[str, Any], change: Callable[[Tensor], Tensor]) -> None:
    """Put another tensor in the place of one."""
    if entry["dtype"] not in DTYPES:
        raise ConversionError(f"{file.name}: weights of type {entry['dtype']} cannot be adapted")
    first, last = entry["data_offsets"]
    content = np.memmap(file, np.uint8, "r+", offset=begin + first, shape=(last - first,))
    weight = torch.frombuffer(content, dtype=DTYPES[entry["dtype"]]).view(entry["shape"])
    weight.copy_(change(weight))
    content.flush()
