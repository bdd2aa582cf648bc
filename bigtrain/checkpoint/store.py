"""Save and load: every process writes what it holds, and reads what it will hold."""

import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp

from bigtrain.checkpoint.catalog import FORMAT_VERSION, Checkpoint, TrainingState, prune, publish
from bigtrain.checkpoint.holdings import adam_step, finish_load, holdings
from bigtrain.checkpoint.planners import LoadPlanner, SavePlanner, state_dict
from bigtrain.errors import CheckpointError
from bigtrain.parallel import topology
from bigtrain.parallel.engine import Engine


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
    with topology.together():
        if engine.layout.rank == 0:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
    held = holdings(engine, to_save=True)
    writer = dcp.FileSystemWriter(aside, single_file_per_rank=True, sync_files=True)
    dcp.save(state_dict(held), storage_writer=writer, planner=SavePlanner(held))
    with topology.together():
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
            publish(folder, aside, final, marker)
            prune(folder, keep_last)
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
