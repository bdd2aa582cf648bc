"""A checkpoint written of weights that come from elsewhere, a box at a time."""

import heapq
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan

from bigtrain.checkpoint import catalog
from bigtrain.checkpoint.catalog import TrainingState
from bigtrain.checkpoint.files import Abandoned, write_boxes, write_metadata
from bigtrain.checkpoint.planners import Holding, SavePlanner, state_dict
from bigtrain.config import ModelConfig
from bigtrain.convert.stream import THREADS, Room
from bigtrain.convert.weights import WEIGHTS

Box = tuple[str, tuple[int, ...]]
"""One of our weights, and where it is stacked the layer, or the layer and the expert."""

_LAYERS, _EXPERTS = ("encoder.layers.", "decoder.layers."), ".experts."
START = TrainingState(0, 0, 0)


def boxes_of(shapes: Mapping[str, tuple[int, ...]]) -> list[Box]:
    """Every part of our weights that is one layer's or expert's, or stands alone, by their names and global shapes."""
    found: list[Box] = []
    for name, shape in shapes.items():
        stacked = 0 if not name.startswith(_LAYERS) else 2 if _EXPERTS in name else 1
        found += [(name, index) for index in product(*(range(size) for size in shape[:stacked]))]
    return found


def write_checkpoint(
    checkpoints: Path,
    model: ModelConfig,
    shapes: Mapping[str, tuple[int, ...]],
    boxes: Sequence[Box],
    read: Callable[[Box], Tensor],
    *,
    origin: Callable[[], Mapping[str, Any]],
    dtype: torch.dtype = torch.float32,
    state: TrainingState = START,
) -> Path:
    """Write the weights as a checkpoint without an optimizer's state.

    Nothing waits for the disk: it can be written again, and whoever reads it compares the checksums.

    Args:
        checkpoints: The folder of checkpoints.
        model: The model's shape.
        shapes: Our weights and their global shapes.
        boxes: All parts of them.
        read: Gives a part, without the axes of its index; threads call it at the same time.
        origin: Tells where the weights come from, for the marker; asked at the end.
        dtype: Type that they are written in.
        state: Where the run stood; default: at its beginning.

    Returns:
        The checkpoint's folder.

    Raises:
        OSError: The disk is full.
    """
    aside, final = catalog.folders(checkpoints, state.step)
    catalog.make_room(aside)
    shares = _shares({box: _holding(shapes[box[0]], dtype, *box) for box in boxes}, THREADS)
    room = Room(max(holding.values.nbytes for share in shares for holding in share.values()))
    planners = [_Arriving(share, read, room, dtype) for share in shares]
    plans = [planner.create_local_plan() for planner in planners]
    _, metadata = planners[0].create_global_plan(plans)
    written = _write_files(aside, plans, planners)
    write_metadata(aside, metadata, plans, written)
    marker = {
        "format_version": catalog.FORMAT_VERSION,
        "step": state.step,
        "position": state.position,
        "tokens": state.tokens,
        "adam_step": 0,
        "model": model.model_dump(mode="json"),
        "layout": {},
        "data": {},
        "origin": dict(origin()),
        "metadata_crc32": catalog.crc32_of_metadata(aside),
        "files": catalog.file_sizes(aside),
    }
    catalog.publish(checkpoints, aside, final, marker)
    return final


class _Arriving(SavePlanner):
    """Boxes that are read when they are to be written, one at a time."""

    def __init__(
        self, share: Mapping[Box, Holding], read: Callable[[Box], Tensor], room: Room, dtype: torch.dtype
    ) -> None:
        super().__init__(list(share.values()), dtype)
        self.set_up_planner(state_dict(list(share.values())), is_coordinator=True)
        self._share = {MetadataIndex(held.name, held.offset): (box, held) for box, held in share.items()}
        self._read, self._room = read, room
        self._taken = 0

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        self.release()  # the one before is written
        box, held = self._share[MetadataIndex(index.fqn, index.offset)]
        self._taken = self._room.take(held.values.nbytes)
        return self._read(box).to(held.values.dtype).reshape(held.shape)

    def release(self) -> None:
        """Nothing is held any more."""
        self._room.give_back(self._taken)
        self._taken = 0


def _write_files(aside: Path, plans: Sequence[SavePlan], planners: Sequence[_Arriving]) -> list[np.ndarray]:
    """A file for each plan, at the same time; where one fails, all end."""
    stop = threading.Event()

    def write(number: int) -> np.ndarray:
        try:
            return write_boxes(aside, number, plans[number], planners[number], stop, sync=False)
        except BaseException:
            stop.set()
            raise
        finally:
            planners[number].release()

    with ThreadPoolExecutor(len(plans), "convert") as pool:
        tasks = [pool.submit(write, number) for number in range(len(plans))]
    errors = [error for error in (task.exception() for task in tasks) if error is not None]
    for error in errors:
        if not isinstance(error, Abandoned):
            raise error
    return [task.result() for task in tasks]


def _holding(shape: tuple[int, ...], dtype: torch.dtype, name: str, index: tuple[int, ...]) -> Holding:
    """A box without memory."""
    size = torch.Size((*(1 for _ in index), *shape[len(index) :]))
    offset = torch.Size((*index, *(0 for _ in shape[len(index) :])))
    return Holding(WEIGHTS + name, torch.Size(shape), offset, size, torch.empty(size, dtype=dtype, device="meta"))


def _shares(boxes: Mapping[Box, Holding], count: int) -> list[dict[Box, Holding]]:
    """The boxes, dealt out so that each share has about as many bytes; none is empty."""
    shares: list[dict[Box, Holding]] = [{} for _ in range(min(count, len(boxes)))]
    smallest = [(0, number) for number in range(len(shares))]
    for box, holding in sorted(boxes.items(), key=lambda item: -item[1].values.nbytes):
        size, number = heapq.heappop(smallest)
        shares[number][box] = holding
        heapq.heappush(smallest, (size + holding.values.nbytes, number))
    return shares
