"""The folder of checkpoints: written aside, marked, renamed; found, checked, pruned.

`RUN/checkpoints/step-00000100/` holds the tensors as torch's distributed checkpoint writes them
(`.metadata`, `*.distcp`) and `complete.json`, the marker. The folder gets its name by a rename, after
everything in it has reached the disk. `RUN/checkpoints/latest` names the newest.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from bigtrain.checkpoint.holdings import adam_step, finish_load, holdings
from bigtrain.checkpoint.planners import LoadPlanner, SavePlanner, state_dict
from bigtrain.errors import CheckpointError
from bigtrain.parallel.engine import Engine

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


def save(folder: Path, engine: Engine, state: TrainingState, data: Mapping[str, Any], keep_last: int) -> Path:
    """Write a checkpoint; all ranks call it, each writes what it holds.

    Args:
        folder: `RUN/checkpoints`.
        engine: Model and optimizer.
        state: Where the run stands.
        data: What decides the order of samples; compared on resume.
        keep_last: Older checkpoints are removed until this many remain; 0 keeps all.

    Returns:
        The checkpoint's folder.
    """
    final = folder / f"step-{state.step:08d}"
    aside = folder / f".step-{state.step:08d}.writing"
    if engine.layout.rank == 0:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    dist.barrier()
    held = holdings(engine, to_save=True)
    writer = dcp.FileSystemWriter(aside, single_file_per_rank=True, sync_files=True)
    dcp.save(state_dict(held), storage_writer=writer, planner=SavePlanner(held))
    if engine.layout.rank == 0:
        marker = {
            "format_version": FORMAT_VERSION,
            **asdict(state),
            "adam_step": adam_step(engine),
            "model": engine.config.model.model_dump(mode="json"),
            "layout": engine.layout.describe(),
            "data": dict(data),
            "files": {p.name: p.stat().st_size for p in sorted(aside.iterdir())},
        }
        _publish(folder, aside, final, marker)
        _prune(folder, keep_last)
    dist.barrier()
    return final


def load(checkpoint: Checkpoint, engine: Engine) -> None:
    """Fill the engine from a checkpoint of any layout; all ranks call it.

    Raises:
        CheckpointError: A tensor or file is missing, damaged or of another shape.
    """
    held = holdings(engine, to_save=False)
    try:
        dcp.load(state_dict(held), storage_reader=dcp.FileSystemReader(checkpoint.path), planner=LoadPlanner(held))
    except dcp.api.CheckpointException as error:
        causes = "; ".join(sorted({str(cause) for cause, _ in error.failures.values()}))
        raise CheckpointError(f"cannot load {checkpoint.path}: {causes}") from error
    finish_load(engine, checkpoint.adam_step)


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


def _publish(folder: Path, aside: Path, final: Path, marker: Mapping[str, Any]) -> None:
    _write_durably(aside / MARKER, json.dumps(marker, indent=2))
    _sync_folder(aside)
    if final.exists():  # of a run that was set back before this step
        _remove(final)
    aside.rename(final)
    _write_durably(folder / ".latest.writing", final.name)
    (folder / ".latest.writing").rename(folder / "latest")
    _sync_folder(folder)


def _prune(folder: Path, keep_last: int) -> None:
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
