"""The folder of checkpoints: marked, renamed, found, checked, pruned. Nothing here needs torch.

`RUN/checkpoints/step-00000100/` holds the tensors as torch's distributed checkpoint writes them
(`.metadata`, `*.distcp`) and `complete.json`, the marker. The folder gets its name by a rename, after
everything in it has reached the disk. `RUN/checkpoints/latest` names the newest.

Behind a URL there are no folders and no renames: there the marker, written last, completes a checkpoint.
"""

import json
import os
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bigtrain.checkpoint.places import is_local
from bigtrain.errors import CheckpointError

FORMAT_VERSION = 1
MARKER = "complete.json"
METADATA = ".metadata"
"""Torch's list of all tensors and of where their boxes lie; ours adds each box's CRC-32 to it."""
REMEDY = "remove its folder to use the checkpoint before it"


@dataclass(frozen=True)
class TrainingState:
    """Where a run stands, beside its tensors."""

    step: int
    """Optimizer steps done."""
    position: int
    """Position in the endless order of samples at which the next step begins."""
    tokens: int
    """Tokens trained on."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint's folder and its marker."""

    path: Path
    state: TrainingState
    adam_step: int
    model: dict[str, Any]
    """`model` section of the configuration that wrote it."""
    layout: dict[str, Any]
    """Layout that wrote it; any other can read it."""
    data: dict[str, Any]
    """What decides the meaning of `position`."""
    origin: dict[str, Any] = field(default_factory=dict)
    """Where the first weights came from: empty, or what a conversion said of its source."""
    trained: dict[str, Any] = field(default_factory=dict)
    """Which of the weights were trained, where not all: `lora` or `freeze`, as the `finetune` section says it."""


def newest(folder: Path) -> Checkpoint | None:
    """The newest complete checkpoint in `folder`, or None.

    Raises:
        CheckpointError: It is damaged, or of a format this version does not know.
    """
    found = complete(folder)
    return read(found[-1]) if found else None


def read(path: Path) -> Checkpoint:
    """Read a checkpoint's marker and check that its files are there in their recorded size.

    Raises:
        CheckpointError: It is incomplete or damaged, or of a format this version does not know.
    """
    marker_path = path / MARKER
    if not marker_path.is_file():
        raise CheckpointError(f"{path} is not a complete checkpoint: it has no {MARKER}")
    try:
        marker = json.loads(marker_path.read_text(encoding="utf-8"))
        if marker["format_version"] != FORMAT_VERSION:
            raise CheckpointError(
                f"{path} has format version {marker['format_version']}; this version of bigtrain reads {FORMAT_VERSION}"
            )
        _check_sizes(path, marker["files"])
        if "metadata_crc32" in marker:
            _check_metadata(path / METADATA, marker["metadata_crc32"])
        return Checkpoint(
            path=path,
            state=TrainingState(marker["step"], marker["position"], marker["tokens"]),
            adam_step=marker["adam_step"],
            model=marker["model"],
            layout=marker["layout"],
            data=marker["data"],
            origin=marker.get("origin", {}),
            trained=marker.get("trained", {}),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{marker_path} is damaged: {error!r}; {REMEDY}") from None


def file_sizes(path: Path) -> dict[str, int]:
    """Name and bytes of every file in a checkpoint's folder."""
    if is_local(path):
        return {file.name: file.stat().st_size for file in sorted(path.iterdir())}
    entries = path.fs.ls(path.path, detail=True)  # type: ignore[attr-defined]  # all in one request
    return {entry["name"].rpartition("/")[2]: entry["size"] for entry in entries}


def crc32_of_metadata(path: Path) -> int:
    """CRC-32 of the list of tensors in a checkpoint's folder."""
    return zlib.crc32((path / METADATA).read_bytes())


def _check_sizes(path: Path, written: Mapping[str, int]) -> None:
    there = file_sizes(path)
    for name, size in written.items():
        if name not in there:
            raise CheckpointError(f"{path / name} is missing; {REMEDY}")
        if there[name] != size:
            raise CheckpointError(f"{path / name} has {there[name]} bytes, {size} were written; {REMEDY}")


def _check_metadata(path: Path, written: int) -> None:
    if zlib.crc32(path.read_bytes()) != written:
        raise CheckpointError(f"{path} is damaged: its checksum is not that of what was written; {REMEDY}")


def complete(folder: Path) -> list[Path]:
    """The folders of all complete checkpoints in `folder`, the oldest first."""
    return sorted((marker.parent for marker in folder.glob(f"step-*/{MARKER}")), key=lambda path: path.name)


def folders(folder: Path, step: int) -> tuple[Path, Path]:
    """Where the checkpoint of a step is written, and where it is when complete; the same behind a URL."""
    final = folder / f"step-{step:08d}"
    return (folder / f".{final.name}.writing" if is_local(folder) else final), final


def make_room(aside: Path) -> None:
    """Prepare the folder that a checkpoint is going to be written in."""
    if aside.exists():
        _remove(aside)
    if is_local(aside):
        aside.mkdir(parents=True)


def publish(folder: Path, aside: Path, final: Path, marker: Mapping[str, Any]) -> None:
    """Complete the checkpoint written in `aside`: add the marker, rename it to `final`, point `latest` to it."""
    text = json.dumps(marker, indent=2)
    if not is_local(folder):
        (final / MARKER).write_text(text, encoding="utf-8")
        (folder / "latest").write_text(final.name, encoding="utf-8")
        return
    _write_durably(aside / MARKER, text)
    _sync_folder(aside)
    if final.exists():  # of a run that was set back before this step
        _remove(final)
    aside.rename(final)
    _write_durably(folder / ".latest.writing", final.name)
    (folder / ".latest.writing").rename(folder / "latest")
    _sync_folder(folder)


def prune(folder: Path, keep_last: int, keep_every: int = 0) -> None:
    """Remove the oldest complete checkpoints until `keep_last` remain (0: keep all), and those that stay for ever.

    Args:
        folder: The folder of checkpoints.
        keep_last: How many of the newest stay.
        keep_every: Those at multiples of so many steps stay for ever; 0: none.
    """
    for old in complete(folder)[:-keep_last] if keep_last else []:
        if not keep_every or int(old.name.removeprefix("step-")) % keep_every:
            _remove(old)


def forget_after(folder: Path, step: int) -> None:
    """Remove complete checkpoints of later steps, where a run was set back."""
    for path in complete(folder):
        if int(path.name.removeprefix("step-")) > step:
            _remove(path)


def clean(folder: Path) -> None:
    """Remove what a crash has left of a save or of a removal; nothing may be being written."""
    if is_local(folder):
        for left in folder.glob(".step-*.writing"):
            shutil.rmtree(left, ignore_errors=True)
    elif folder.exists():
        for left in [path for path in folder.glob("step-*") if not (path / MARKER).exists()]:
            _remove(left)


def _remove(path: Path) -> None:
    """Half removed it must not be taken for a checkpoint."""
    if is_local(path):
        aside = path.with_name(f".{path.name.strip('.')}.removed.writing")
        if aside.exists():
            shutil.rmtree(aside)
        shutil.rmtree(path.rename(aside))
    else:
        (path / MARKER).unlink(missing_ok=True)
        path.fs.rm(path.path, recursive=True)  # type: ignore[attr-defined]


def _write_durably(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
