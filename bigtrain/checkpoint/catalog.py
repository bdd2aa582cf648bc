"""The folder of checkpoints: marked, renamed, found, checked, pruned. Nothing here needs torch.

`RUN/checkpoints/step-00000100/` holds the tensors as torch's distributed checkpoint writes them
(`.metadata`, `*.distcp`) and `complete.json`, the marker. The folder gets its name by a rename, after
everything in it has reached the disk. `RUN/checkpoints/latest` names the newest.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigtrain.errors import CheckpointError

FORMAT_VERSION = 1
MARKER = "complete.json"


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


def newest(folder: Path) -> Checkpoint | None:
    """The newest complete checkpoint in `folder`, or None.

    Raises:
        CheckpointError: It is damaged, or of a format this version does not know.
    """
    complete = _complete(folder)
    return read(complete[-1]) if complete else None


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
        for name, size in marker["files"].items():
            _check_file(path / name, size)
        return Checkpoint(
            path=path,
            state=TrainingState(marker["step"], marker["position"], marker["tokens"]),
            adam_step=marker["adam_step"],
            model=marker["model"],
            layout=marker["layout"],
            data=marker["data"],
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{marker_path} is damaged: {error!r}; remove the folder to use the one before it"
        ) from None


def _check_file(path: Path, size: int) -> None:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; remove its folder to use the checkpoint before it")
    if path.stat().st_size != size:
        raise CheckpointError(
            f"{path} has {path.stat().st_size} bytes, {size} were written; "
            "remove its folder to use the checkpoint before it"
        )


def _complete(folder: Path) -> list[Path]:
    return sorted(p.parent for p in folder.glob(f"step-*/{MARKER}"))


def publish(folder: Path, aside: Path, final: Path, marker: Mapping[str, Any]) -> None:
    """Complete the checkpoint written in `aside`: add the marker, rename it to `final`, point `latest` to it."""
    _write_durably(aside / MARKER, json.dumps(marker, indent=2))
    _sync_folder(aside)
    if final.exists():  # of a run that was set back before this step
        _remove(final)
    aside.rename(final)
    _write_durably(folder / ".latest.writing", final.name)
    (folder / ".latest.writing").rename(folder / "latest")
    _sync_folder(folder)


def prune(folder: Path, keep_last: int) -> None:
    """Remove the oldest complete checkpoints until `keep_last` remain; 0 keeps all."""
    for old in _complete(folder)[:-keep_last] if keep_last else []:
        _remove(old)


def _remove(path: Path) -> None:
    (path / MARKER).unlink(missing_ok=True)  # first, so that a half-removed folder is never taken for a checkpoint
    shutil.rmtree(path)


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
