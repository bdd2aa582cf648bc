"""The weights of a Hugging Face folder written as a checkpoint, as they come out of it."""

import heapq
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan

from bigtrain.checkpoint import catalog
from bigtrain.checkpoint.files import Abandoned, write_boxes, write_metadata
from bigtrain.checkpoint.planners import Holding, SavePlanner, state_dict
from bigtrain.config import ModelConfig
from bigtrain.convert.family import Family
from bigtrain.convert.folder import Folder
from bigtrain.convert.mapping import WHOLE, Piece, misshapen, pieces_of, some
from bigtrain.convert.stream import THREADS, Room
from bigtrain.convert.weights import VOCABULARY, WEIGHTS
from bigtrain.errors import ConversionError

Box = tuple[str, tuple[int, ...]]
"""One of our weights, and where it is stacked the layer, or the layer and the expert."""


def plan_of(family: Family, model: ModelConfig, shapes: Mapping[str, tuple[int, ...]], folder: Folder) -> list[Piece]:
    """Which tensor of the folder goes where, all of them and nothing twice.

    Args:
        family: Whose map is read.
        model: The model's shape; its vocabulary may be larger than the folder's, and the rest is padding.
        shapes: Our weights and their global shapes.
        folder: The Hugging Face folder.

    Raises:
        ConversionError: A tensor is missing, unknown, or of another shape.
    """
    found = pieces_of(family.weights, model, shapes)
    if missing := sorted(found.keys() - folder.shapes.keys()):
        raise ConversionError(f"{folder.path} lacks {some(missing)}, of which the model is made")
    if extra := sorted(folder.shapes.keys() - found.keys()):
        raise ConversionError(f"{folder.path} holds {some(extra)}, which no row of the map of {family.name} takes")
    there = dict(folder.shapes)
    for name, piece in found.items():
        if piece.source in VOCABULARY and there[name][0] <= model.vocab_size:
            there[name] = (model.vocab_size, *there[name][1:])
    for name, shape in misshapen(found, model, shapes, there):
        raise ConversionError(f"{folder.path}: {name} is {there[name]}, and config.json makes it {shape}")
    return list(found.values())


def write_checkpoint(
    checkpoints: Path,
    folder: Folder,
    model: ModelConfig,
    plan: Sequence[Piece],
    shapes: Mapping[str, tuple[int, ...]],
    origin: Mapping[str, Any],
) -> Path:
    """Write the weights in float32 as the checkpoint of step 0, without an optimizer's state.

    Args:
        checkpoints: The folder of checkpoints.
        folder: Where the weights are.
        model: The model's shape.
        plan: As `plan_of` gives it.
        shapes: Our weights and their global shapes.
        origin: Where they come from, for the marker.

    Returns:
        The checkpoint's folder.

    Raises:
        ConversionError: A file of the folder is damaged.
        OSError: The disk is full.
    """
    aside, final = catalog.folders(checkpoints, 0)
    catalog.make_room(aside)
    boxes: dict[Box, list[Piece]] = {}
    for piece in plan:
        boxes.setdefault((piece.source, piece.index), []).append(piece)
    shares = _shares({box: _holding(shapes[box[0]], *box) for box in boxes}, THREADS)
    room = Room(max(holding.values.nbytes for share in shares for holding in share.values()))
    planners = [_Arriving(share, boxes, folder, model, room) for share in shares]
    plans = [planner.create_local_plan() for planner in planners]
    _, metadata = planners[0].create_global_plan(plans)
    written = _write_files(aside, plans, planners)
    write_metadata(aside, metadata, plans, written)
    marker = {
        "format_version": catalog.FORMAT_VERSION,
        "step": 0,
        "position": 0,
        "tokens": 0,
        "adam_step": 0,
        "model": model.model_dump(mode="json"),
        "layout": {},
        "data": {},
        "origin": dict(origin),
        "metadata_crc32": catalog.crc32_of_metadata(aside),
        "files": catalog.file_sizes(aside),
    }
    catalog.publish(checkpoints, aside, final, marker)
    return final


class _Arriving(SavePlanner):
    """Boxes that are made of the folder's tensors when they are to be written, one at a time."""

    def __init__(
        self,
        share: Mapping[Box, Holding],
        boxes: Mapping[Box, list[Piece]],
        folder: Folder,
        model: ModelConfig,
        room: Room,
    ) -> None:
        super().__init__(list(share.values()))
        self.set_up_planner(state_dict(list(share.values())), is_coordinator=True)
        self._share = {MetadataIndex(held.name, held.offset): (held, boxes[box]) for box, held in share.items()}
        self._folder, self._model, self._room = folder, model, room
        self._taken = 0

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        self.release()  # the one before is written
        held, pieces = self._share[MetadataIndex(index.fqn, index.offset)]
        self._taken = self._room.take(held.values.nbytes)
        return self._made_of(pieces, held.shape)

    def release(self) -> None:
        """Nothing is held any more."""
        self._room.give_back(self._taken)
        self._taken = 0

    def _made_of(self, pieces: Sequence[Piece], shape: torch.Size) -> Tensor:
        first = pieces[0]
        inner = shape[len(first.index) :]
        if len(pieces) == 1 and first.cut == WHOLE:
            values = self._folder.read(first.name).to(torch.float32)
            if values.shape != inner:  # padding of the vocabulary
                values = torch.cat([values, values.new_zeros(inner[0] - len(values), *inner[1:])])
            return values.reshape(shape)
        values = torch.empty(inner)
        for piece in pieces:
            piece.cut.into(values, self._folder.read(piece.name), self._model)
        return values.view(shape)


def _write_files(aside: Path, plans: Sequence[SavePlan], planners: Sequence[_Arriving]) -> list[np.ndarray]:
    """A file for each plan, at the same time; where one fails, all end."""
    stop = threading.Event()

    def write(number: int) -> np.ndarray:
        try:
            return write_boxes(aside, number, plans[number], planners[number], stop)
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


def _holding(shape: tuple[int, ...], name: str, index: tuple[int, ...]) -> Holding:
    """A box without memory."""
    size = torch.Size((*(1 for _ in index), *shape[len(index) :]))
    offset = torch.Size((*index, *(0 for _ in shape[len(index) :])))
    return Holding(WEIGHTS + name, torch.Size(shape), offset, size, torch.empty(size, device="meta"))


def _shares(boxes: Mapping[Box, Holding], count: int) -> list[dict[Box, Holding]]:
    """The boxes, dealt out so that each share has about as many bytes; none is empty."""
    shares: list[dict[Box, Holding]] = [{} for _ in range(min(count, len(boxes)))]
    smallest = [(0, number) for number in range(len(shares))]
    for box, holding in sorted(boxes.items(), key=lambda item: -item[1].values.nbytes):
        size, number = heapq.heappop(smallest)
        shares[number][box] = holding
        heapq.heappush(smallest, (size + holding.values.nbytes, number))
    return shares
