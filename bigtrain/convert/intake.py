"""The weights of a Hugging Face folder written as a checkpoint, as they come out of it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bigtrain.config import ModelConfig
from bigtrain.convert.arriving import Box, write_checkpoint
from bigtrain.convert.family import Family
from bigtrain.convert.folder import Folder
from bigtrain.convert.mapping import WHOLE, Piece, misshapen, pieces_of, some
from bigtrain.convert.weights import VOCABULARY
from bigtrain.errors import ConversionError


def plan_of(
    family: Family, model: ModelConfig, shapes: Mapping[str, tuple[int, ...]], folder: Folder, rows: int
) -> list[Piece]:
    """Which tensor of the folder goes where, all of them and nothing twice.

    Args:
        family: Whose map is read.
        model: The model's shape.
        shapes: Our weights and their global shapes.
        folder: The Hugging Face folder.
        rows: Of its vocabulary; the model may have more, and the rest is padding.

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
        if piece.source in VOCABULARY and there[name][0] == rows:
            there[name] = (model.vocab_size, *there[name][1:])
    for name, shape in misshapen(found, model, shapes, there):
        raise ConversionError(f"{folder.path}: {name} is {there[name]}, and config.json makes it {shape}")
    return list(found.values())


def shapes_there(family: Family, shapes: Mapping[str, tuple[int, ...]], folder: Folder) -> dict[str, tuple[int, ...]]:
    """Our weights without those of a head of which a folder has nothing, or the family nothing."""
    absent = tuple(head for head in family.heads if not any(name.startswith(head) for name in folder.shapes))
    return {
        ours: shape
        for ours, shape in shapes.items()
        if not family.heads or not all(name.startswith(absent) for name in family.weights.get(ours, ()))
    }


def write_intake(
    checkpoints: Path,
    folder: Folder,
    model: ModelConfig,
    plan: Sequence[Piece],
    shapes: Mapping[str, tuple[int, ...]],
    origin: Mapping[str, Any],
) -> Path:
    """Write the weights of a Hugging Face folder in float32 as the checkpoint of step 0.

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
    boxes: dict[Box, list[Piece]] = {}
    for piece in plan:
        boxes.setdefault((piece.source, piece.index), []).append(piece)

    def read(box: Box) -> Tensor:
        name, index = box
        return _made_of(boxes[box], shapes[name][len(index) :], folder, model)

    return write_checkpoint(checkpoints, model, shapes, list(boxes), read, origin=origin)


def _made_of(pieces: Sequence[Piece], shape: tuple[int, ...], folder: Folder, model: ModelConfig) -> Tensor:
    first = pieces[0]
    if len(pieces) == 1 and first.cut == WHOLE:
        values = folder.read(first.name).to(torch.float32)
        if values.shape != shape:  # padding of the vocabulary
            values = torch.cat([values, values.new_zeros(shape[0] - len(values), *shape[1:])])
        return values
    values = torch.empty(shape)
    for piece in pieces:
        piece.cut.into(values, folder.read(piece.name), model)
    return values
