"""The files of a checkpoint: torch's format, with a CRC-32 of every box.

A process writes one file, box after box as `torch.save` makes them. The CRC-32 is taken of the bytes on their
way out and kept in `.metadata`, whose own lies in the marker; so every byte is covered. Whoever reads a box
reads it whole, under any layout, and compares. A large box in a local file is read once for that and once more by
torch, out of the system's page cache, so that it is never in memory twice; a conversion maps it, and copies nothing.
"""

import io
import mmap
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
from torch.utils.serialization import config as serialization

from bigtrain.checkpoint.catalog import METADATA, REMEDY, Checkpoint
from bigtrain.checkpoint.places import is_local
from bigtrain.errors import CheckpointError

CHECKSUMS = "bigtrain.crc32"
"""Key in `Metadata.planner_data`, which torch leaves to planners: file -> offset of a box -> CRC-32."""
_PIECE = 1 << 20
"""Bytes that are taken through a checksum and written at a time: the second finds them in the processor's cache."""
_LARGE = 1 << 24
"""Bytes of a box beyond which it is not held in memory beside its tensor."""


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
    folder: Path, rank: int, plan: SavePlan, planner: SavePlanner, abandoned: threading.Event, *, sync: bool = True
) -> np.ndarray:
    """Write a process's boxes, which lie in host memory, to its file, and the file to the disk. Calls nobody else.

    Args:
        folder: The checkpoint's folder, while it is written.
        rank: Whose boxes they are.
        plan: All of them.
        planner: Gives each.
        abandoned: Ends the write, set by another thread.
        sync: Wait until the disk has the file.

    Returns:
        int64 of shape (boxes, 3): offset, length and CRC-32 of each box of the plan.

    Raises:
        OSError: It cannot be written.
        Abandoned: `abandoned` was set meanwhile.
    """
    rows = np.zeros((len(plan.items), 3), np.int64)
    ours = serialization.patch("save.compute_crc32", False)  # type: ignore[attr-defined]  # torch's covers no more
    with (folder / file_name(rank)).open("wb") as raw, ours:
        stream = _Checked(raw, abandoned)
        for row, item in zip(rows, plan.items, strict=True):
            begin, stream.crc = stream.position, 0
            values = _alone(cast(torch.Tensor, planner.resolve_data(item)))
            try:
                torch.save(values, cast(IO[bytes], stream))
            except Exception as error:
                raise stream.error or error from None
            row[:] = begin, stream.position - begin, stream.crc
        raw.flush()
        if sync and is_local(folder):
            os.fsync(raw.fileno())
    return rows


def _alone(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as a storage of its own: torch saves whole storages, and keeps a copy until Python tidies up."""
    if tensor.dtype == torch.bfloat16:  # which numpy does not have
        return torch.from_numpy(tensor.view(torch.int16).numpy()).view(torch.bfloat16)
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
        if sinfo.length > _LARGE and isinstance(file, io.BufferedReader):  # torch reads it again, from the page cache
            count, crc = _crc32_of_next(file, sinfo.length)
            box = super()._slice_file(file, sinfo)
        else:
            content = file.read(sinfo.length)
            count, crc, box = len(content), zlib.crc32(content), io.BytesIO(content)
        self._compare(crc, count, sinfo)
        return box

    def _compare(self, crc: int, count: int, sinfo: _StorageInfo) -> None:
        """`crc` is that of the `count` bytes that the box still has."""
        expected = self._checksums.get(sinfo.relative_path, {}).get(sinfo.offset)
        if count != sinfo.length or expected not in (None, crc):
            raise CheckpointError(
                f"{self.fs.concat_path(self.path, sinfo.relative_path)} is damaged between the bytes {sinfo.offset} "
                f"and {sinfo.offset + sinfo.length}: their checksum is not that of what was written; {REMEDY}"
            )

    def boxes(self, plan: LoadPlan) -> Iterator[tuple[ReadItem, torch.Tensor]]:
        """What each item of a plan reads, one after the other: a tensor of its own, where `read_data` copies into one.
        Of a local file it is mapped into memory, and what is written to it does not reach the file.

        Raises:
            CheckpointError: It is damaged.
        """
        for item in plan.items:
            stored = self.storage_data[item.storage_index]
            with self.fs.create_stream(self.fs.concat_path(self.path, stored.relative_path), "rb") as stream:
                if isinstance(stream, io.BufferedReader):
                    tensor = self._mapped(stream, stored)
                else:
                    box = self._slice_file(cast(IO[bytes], stream), stored)
                    tensor = torch.load(box, map_location="cpu", weights_only=True)
            yield item, narrow_tensor_by_index(tensor, item.storage_offsets, item.lengths)

    def _mapped(self, file: io.BufferedReader, stored: _StorageInfo) -> torch.Tensor:
        """The tensor of a box, its memory being the file's."""
        if os.fstat(file.fileno()).st_size < stored.offset + stored.length:
            self._compare(0, 0, stored)
        before = stored.offset % mmap.ALLOCATIONGRANULARITY
        pages = mmap.mmap(file.fileno(), before + stored.length, access=mmap.ACCESS_COPY, offset=stored.offset - before)
        with memoryview(pages) as content, content[before:] as box:
            self._compare(zlib.crc32(box), len(box), stored)
        view = super()._slice_file(file, stored)
        told = torch.load(view, map_location="meta", weights_only=True)
        begin = getattr(told.untyped_storage(), "_checkpoint_offset", None)
        if begin is None or not told.numel():  # of a torch that does not tell
            view.seek(0)
            return cast(torch.Tensor, torch.load(view, map_location="cpu", weights_only=True))
        count = told.untyped_storage().nbytes() // told.dtype.itemsize
        flat = torch.frombuffer(pages, dtype=told.dtype, count=count, offset=before + begin)
        return flat.as_strided(told.shape, told.stride(), told.storage_offset())


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
