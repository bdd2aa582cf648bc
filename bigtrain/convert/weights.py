"""A checkpoint's weights, read a box at a time on one process."""

import math
import warnings
from collections.abc import Sequence

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from bigtrain.checkpoint.catalog import Checkpoint
from bigtrain.checkpoint.files import read_metadata, reader
from bigtrain.checkpoint.holdings import PREFIXES, Holding
from bigtrain.checkpoint.planners import LoadPlanner, state_dict
from bigtrain.errors import CheckpointError

WEIGHTS = PREFIXES["weight"]


def weight_shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """Name and global shape of every weight; the layers' weights are stacked along the first axis.

    Raises:
        CheckpointError: The list of tensors cannot be read.
    """
    stored = read_metadata(checkpoint).state_dict_metadata
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
                storage_reader=reader(checkpoint),
                planner=LoadPlanner(boxes),
                no_dist=True,
            )
    except dcp.api.CheckpointException as error:
        causes = "; ".join(sorted({str(cause) for cause, _ in error.failures.values()}))
        raise CheckpointError(f"cannot read {checkpoint.path}: {causes}") from error
