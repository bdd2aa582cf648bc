"""A checkpoint as the source of a conversion: found, described, read a box at a time on one process."""

import math
import pickle
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from pydantic import ValidationError
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from bigtrain.checkpoint import catalog
from bigtrain.checkpoint.catalog import Checkpoint
from bigtrain.checkpoint.holdings import PREFIXES, Holding
from bigtrain.checkpoint.planners import LoadPlanner, state_dict
from bigtrain.config import Config, ModelConfig, load_config
from bigtrain.errors import CheckpointError

WEIGHTS = PREFIXES["weight"]


def find_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint that `path` means: the newest complete one of a run's folder or of its `checkpoints`
    folder, or the one in the step's folder itself.

    Raises:
        CheckpointError: There is none, or it is damaged.
    """
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such folder; give a run's folder or one of its checkpoints")
    if path.name.startswith("step-") or (path / catalog.MARKER).exists():
        return catalog.read(path)
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    found = catalog.newest(folder)
    if found is None:
        unfinished = sorted(part.name for part in folder.glob("*step-*"))
        why = f" (incomplete: {', '.join(unfinished)})" if unfinished else ""
        raise CheckpointError(f"{folder} holds no complete checkpoint{why}; give a run's folder or one of its steps")
    return found


def run_folder(checkpoint: Checkpoint) -> Path | None:
    """The folder of the run that wrote the checkpoint, where it still lies inside it."""
    run = checkpoint.path.resolve().parent.parent
    return run if (run / "config.yaml").is_file() else None


def run_config(checkpoint: Checkpoint) -> Config | None:
    """The configuration of the run that wrote the checkpoint, where it still lies inside its folder.

    Raises:
        ConfigError: Its `config.yaml` cannot be understood.
    """
    run = run_folder(checkpoint)
    return None if run is None else load_config(run / "config.yaml")


def model_config(checkpoint: Checkpoint) -> ModelConfig:
    """The model's shape, as the checkpoint's marker tells it.

    Raises:
        CheckpointError: The marker holds another model section than this version knows.
    """
    try:
        return ModelConfig.model_validate(checkpoint.model)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in ("model", *first["loc"]))
        raise CheckpointError(f"{checkpoint.path / catalog.MARKER}: {key}: {first['msg']}") from None


def weight_shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """Name and global shape of every weight; the layers' weights are stacked along the first axis.

    Raises:
        CheckpointError: The list of tensors cannot be read.
    """
    path = checkpoint.path / ".metadata"
    try:
        stored = dcp.FileSystemReader(checkpoint.path).read_metadata().state_dict_metadata
    except (OSError, EOFError, pickle.UnpicklingError, AttributeError, ValueError, IndexError, KeyError) as error:
        raise CheckpointError(f"{path} is damaged: {error!r}") from None
    return {
        name.removeprefix(WEIGHTS): tuple(entry.size)
        for name, entry in stored.items()
        if name.startswith(WEIGHTS) and isinstance(entry, TensorStorageMetadata)
    }


def read_weights(
    checkpoint: Checkpoint, shapes: dict[str, tuple[int, ...]], wanted: Sequence[tuple[str, int | None]]
) -> dict[tuple[str, int | None], Tensor]:
    """Read whole weights `(name, None)`, or those of one layer `(name, layer)`.

    Args:
        checkpoint: Where they lie.
        shapes: As `weight_shapes` gives them.
        wanted: Names, with the layer where the weight is stacked over layers.

    Returns:
        float32, of the global shape, without the axis of layers.

    Raises:
        CheckpointError: A file is damaged.
    """
    boxes = {key: _box(shapes[key[0]], *key) for key in wanted}
    read_into(checkpoint, list(boxes.values()))
    return {key: box.values if key[1] is None else box.values[0] for key, box in boxes.items()}


def _box(shape: tuple[int, ...], name: str, layer: int | None) -> Holding:
    size = shape if layer is None else (1, *shape[1:])
    offset = (0,) * len(shape) if layer is None else (layer, *(0,) * (len(shape) - 1))
    values = torch.empty(math.prod(size)).view(size)
    return Holding(WEIGHTS + name, torch.Size(shape), torch.Size(offset), torch.Size(size), values)


def read_into(checkpoint: Checkpoint, boxes: Sequence[Holding]) -> None:
    """Fill boxes of the checkpoint's tensors, in this process alone.

    Raises:
        CheckpointError: A tensor or file is missing, damaged or of another shape.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # as it is meant to be
            dcp.load(
                state_dict(boxes),
                storage_reader=dcp.FileSystemReader(checkpoint.path),
                planner=LoadPlanner(boxes),
                no_dist=True,
            )
    except dcp.api.CheckpointException as error:
        causes = "; ".join(sorted({str(cause) for cause, _ in error.failures.values()}))
        raise CheckpointError(f"cannot read {checkpoint.path}: {causes}") from error
