"""The files of a checkpoint: torch's format, with a CRC-32 of every box.

A process writes one file, box after box as `torch.save` makes them. The CRC-32 is taken of the bytes on their
way out and kept in `.metadata`, whose own lies in the marker; so every byte is covered. Whoever reads a box
reads it whole, under any layout, and compares. A large box in a local file is read once for that and once more by
torch, out of the system's page cache, so that it is never in memory twice.
"""

import io
import os
import pickle
import threading
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed._shard._utils import narrow_tensor_by_index
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import LoadPlan, ReadItem, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult

from bigtrain.checkpoint.catalog import METADATA, REMEDY, Checkpoint
from bigtrain.checkpoint.places import is_local
from bigtrain.errors import CheckpointError

CHECKSUMS = "bigtrain.crc32"
"""Key in `Metadata.planner_data`, which torch leaves to planners: file -> offset of a box -> CRC-32."""
_PIECE = 1 << 24


class Abandoned(Exception):
    """The write was told to stop."""


class _Checked:
    """A stream that counts what goes through it and takes its CRC-32; what `torch.save` writes to."""

    def __init__(self, raw: IO[bytes], abandoned: threading.Event) -> None:
        self._raw = raw
        self._abandoned = abandoned
        self.position = self.crc = 0
        self.error: OSError | None = None
        """What the disk said; torch makes another error of it."""

    def write(self, data: Any) -> int:
        view = memoryview(data)
        for begin in range(0, len(view), _PIECE):
            piece = view[begin : begin + _PIECE]
            if self._abandoned.is_set():
                raise Abandoned
            self.crc = zlib.crc32(piece, self.crc)
            try:
                self._raw.write(piece)
            except OSError as error:
                self.error = error
                raise
        self.position += len(view)
        return len(view)

    def flush(self) -> None:
        """Nothing is held back here."""


def file_name(rank: int) -> str:
    """The file that a rank writes."""
    return f"__{rank}_0.distcp"


def write_boxes(
    folder: Path, rank: int, plan: SavePlan, planner: SavePlanner, abandoned: threading.Event
) -> np.ndarray:
    """Write a process's boxes, which lie in host memory, to its file, and the file to the disk. Calls nobody else.

    Returns:
        int64 of shape (boxes, 3): offset, length and CRC-32 of each box of the plan.

    Raises:
        OSError: It cannot be written.
        Abandoned: `abandoned` was set meanwhile.
    """
    rows = np.zeros((len(plan.items), 3), np.int64)
    with (folder / file_name(rank)).open("wb") as raw:
        stream = _Checked(raw, abandoned)
        for row, item in zip(rows, plan.items, strict=True):
            begin, stream.crc = stream.position, 0
            try:
                torch.save(_alone(cast(torch.Tensor, planner.resolve_data(item))), cast(IO[bytes], stream))
            except Exception as error:
                raise stream.error or error from None
            row[:] = begin, stream.position - begin, stream.crc
        raw.flush()
        if is_local(folder):
            os.fsync(raw.fileno())
    return rows


def _alone(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as a storage of its own: torch saves whole storages, and keeps a copy until Python tidies up."""
    return torch.from_numpy(tensor.numpy())


def write_metadata(folder: Path, metadata: Metadata, plans: Sequence[SavePlan], written: Sequence[np.ndarray]) -> None:
    """Write the list of all tensors, given what `write_boxes` returned on each rank."""
    results = [
        WriteResult(item.index, int(length), _StorageInfo(file_name(rank), int(offset), int(length)))
        for rank, (plan, rows) in enumerate(zip(plans, written, strict=True))
        for item, (offset, length, _) in zip(plan.items, rows, strict=True)
    ]
    metadata.planner_data = {
        CHECKSUMS: {
            file_name(rank): {int(offset): int(crc) for offset, _, crc in rows} for rank, rows in enumerate(written)
        }
    }
    if is_local(folder):
        dcp.FileSystemWriter(folder, sync_files=True).finish(metadata, [results])
    else:
        _fsspec().FsspecWriter(str(folder), sync_files=False, **_options(folder)).finish(metadata, [results])


class CheckingReader(dcp.FileSystemReader):
    """Compares every box with its CRC-32 before torch makes a tensor of it."""

    known: Metadata | None = None
    """The list of tensors, where it has been read already."""
    _checksums: dict[str, dict[int, int]]

    def read_metadata(self, *args: Any, **options: Any) -> Metadata:
        return self.known or super().read_metadata(*args, **options)

    def set_up_storage_reader(self, metadata: Metadata, *args: Any, **options: Any) -> None:
        super().set_up_storage_reader(metadata, *args, **options)
        planner_data = metadata.planner_data  # of other programs' checkpoints None, or something else
        self._checksums = planner_data.get(CHECKSUMS, {}) if isinstance(planner_data, dict) else {}

    def _slice_file(self, file: IO[bytes], sinfo: _StorageInfo) -> IO[bytes]:
        file.seek(sinfo.offset)
        expected = self._checksums.get(sinfo.relative_path, {}).get(sinfo.offset)
        if sinfo.length > _PIECE and isinstance(file, io.BufferedReader):  # torch reads it again, from the page cache
            count, crc = _crc32_of_next(file, sinfo.length)
            box = super()._slice_file(file, sinfo)
        else:
            content = file.read(sinfo.length)
            count, crc, box = len(content), zlib.crc32(content), io.BytesIO(content)
        if count != sinfo.length or expected not in (None, crc):
            raise CheckpointError(
                f"{self.fs.concat_path(self.path, sinfo.relative_path)} is damaged between the bytes {sinfo.offset} "
                f"and {sinfo.offset + sinfo.length}: their checksum is not that of what was written; {REMEDY}"
            )
        return box

    def boxes(self, plan: LoadPlan) -> Iterator[tuple[ReadItem, torch.Tensor]]:
        """What each item of a plan reads, one after the other: a tensor of its own, where `read_data` copies into one.

        Raises:
            CheckpointError: It is damaged.
        """
        for item in plan.items:
            stored = self.storage_data[item.storage_index]
            with self.fs.create_stream(self.fs.concat_path(self.path, stored.relative_path), "rb") as stream:
                box = self._slice_file(cast(IO[bytes], stream), stored)
                tensor = torch.load(box, map_location="cpu", weights_only=True)
            yield item, narrow_tensor_by_index(tensor, item.storage_offsets, item.lengths)


def _crc32_of_next(file: IO[bytes], length: int) -> tuple[int, int]:
    """How many of the next `length` bytes there are, and their CRC-32; no more than a piece is held."""
    count = crc = 0
    while piece := file.read(min(_PIECE, length - count)):
        count, crc = count + len(piece), zlib.crc32(piece, crc)
    return count, crc


def reader(checkpoint: Checkpoint, known: Metadata | None = None) -> CheckingReader:
    """Torch's reader of a checkpoint, which compares checksums as it reads; `known` is its list of tensors, if read."""
    made = CheckingReader(checkpoint.path) if is_local(checkpoint.path) else _remote_reader(checkpoint)
    made.known = known
    return made


def _remote_reader(checkpoint: Checkpoint) -> CheckingReader:
    class RemoteReader(CheckingReader, _fsspec().FsspecReader):  # type: ignore[misc]
        """The same behind a URL."""

    return RemoteReader(str(checkpoint.path), **_options(checkpoint.path))


def read_metadata(checkpoint: Checkpoint) -> Metadata:
    """The list of a checkpoint's tensors.

    Raises:
        CheckpointError: It cannot be read.
    """
    try:
        return reader(checkpoint).read_metadata()
    except (OSError, EOFError, pickle.UnpicklingError, AttributeError, ValueError, IndexError, KeyError) as error:
        raise CheckpointError(f"{checkpoint.path / METADATA} is damaged: {error!r}; {REMEDY}") from None


def _fsspec() -> Any:
    """Torch's reader and writer for URLs; fsspec takes half a second to import."""
    import torch.distributed.checkpoint._fsspec_filesystem as module

    return module


def _options(path: Path) -> dict[str, Any]:
    return dict(path.storage_options)  # type: ignore[attr-defined]
