"""Save and load: every process writes what it holds, and reads what it will hold."""

import warnings
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp

from bigtrain.checkpoint.catalog import Checkpoint, TrainingState
from bigtrain.checkpoint.files import read_metadata, reader
from bigtrain.checkpoint.holdings import adam_step, finish_load, holdings
from bigtrain.checkpoint.planners import PREFIXES, Holding, LoadPlanner, state_dict
from bigtrain.checkpoint.saver import Saver
from bigtrain.errors import CheckpointError
from bigtrain.models.lora import is_adapter
from bigtrain.parallel import topology
from bigtrain.parallel.engine import Engine


def save(
    folder: Path,
    engine: Engine,
    state: TrainingState,
    data: Mapping[str, Any],
    keep_last: int,
    origin: Mapping[str, Any] | None = None,
) -> Path:
    """Write one checkpoint and wait for it; all ranks call it, each writes what it holds.

    Args:
        folder: Where checkpoints lie.
        engine: Model and optimizer.
        state: Where the run stands.
        data: What decides the order of samples; compared on resume.
        keep_last: Older checkpoints are removed until this many remain; 0 keeps all.
        origin: Where the run's first weights came from, if not from chance.

    Returns:
        The checkpoint's folder.

    Raises:
        StorageError: The disk is full.
    """
    with closing(Saver(folder, engine, data, keep_last=keep_last, in_background=False, origin=origin)) as saver:
        return saver.save(state)


def load(checkpoint: Checkpoint, engine: Engine) -> None:
    """Fill the engine from a checkpoint of any layout; all ranks call it.

    Rank 0 reads the list of tensors for all; each opens the files in which its own boxes lie.

    Raises:
        CheckpointError: A tensor or file is missing, damaged or of another shape.
    """
    _fill(checkpoint, holdings(engine, to_save=False))
    finish_load(engine, checkpoint.adam_step)


def load_weights(checkpoint: Checkpoint, engine: Engine, *, but: Sequence[str] = ()) -> None:
    """The weights alone; the optimizer stays as it is. All ranks call it.

    Weights whose names begin with one of `but` keep what they have, and so do adapters where the checkpoint has none.

    Raises:
        CheckpointError: As `load`.
    """
    prefix = PREFIXES["weight"]
    left_out = tuple(prefix + name for name in but)
    held = [box for box in holdings(engine, to_save=False) if box.name.startswith(prefix)]
    fresh = "lora" not in checkpoint.trained
    _fill(checkpoint, [b for b in held if not (b.name.startswith(left_out) or (fresh and is_adapter(b.name)))])
    finish_load(engine, adam_step(engine))


def _fill(checkpoint: Checkpoint, held: Sequence[Holding]) -> None:
    metadata = None
    with topology.together():
        if topology.is_first_rank():
            metadata = read_metadata(checkpoint)
    storage = reader(checkpoint, topology.from_first(metadata))
    with topology.together(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        try:  # each for itself: torch would gather all ranks' plans on rank 0, to hand them back as they are
            dcp.load(state_dict(held), storage_reader=storage, planner=LoadPlanner(held), no_dist=True)
        except dcp.api.CheckpointException as error:
            causes = "; ".join(sorted({str(cause) for cause, _ in error.failures.values()}))
            raise CheckpointError(f"cannot load {checkpoint.path}: {causes}") from error
