"""A checkpoint's weights, read a box at a time on one process, with what adapters add to them."""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import cast

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem

from bigtrain.checkpoint.catalog import Checkpoint
from bigtrain.checkpoint.files import read_metadata, reader
from bigtrain.checkpoint.planners import PREFIXES, Holding, LoadPlanner
from bigtrain.convert.mapping import module_rows
from bigtrain.convert.source import model_config
from bigtrain.convert.stream import fresh
from bigtrain.errors import BigTrainError, CheckpointError

WEIGHTS = PREFIXES["weight"]
VOCABULARY = frozenset({"embedding.word_embeddings.weight", "output_layer.weight", "output_layer.bias"})
"""Weights with a row for each token; the last rows may be padding."""


_ADAPTER = re.compile(r"(.+)\.(\w+_proj)\.lora_A\.weight")


class Weights:
    """The weights in a checkpoint, those that have adapters (`finetune.lora`) with what these add.

    Its list of tensors is read once; threads may read at the same time.
    """

    def __init__(self, checkpoint: Checkpoint, prefix: str = WEIGHTS) -> None:
        """`prefix` stands before the names of weights there.

        Raises:
            CheckpointError: The list of tensors cannot be read.
        """
        self._checkpoint, self._prefix = checkpoint, prefix
        self._stored_at: dict[tuple[str, int], dict[tuple[int, ...], list[ChunkStorageMetadata]]] = {}
        self._metadata = read_metadata(checkpoint)
        self._reader = reader(checkpoint)
        self._reader.set_up_storage_reader(self._metadata, is_coordinator=True)
        shapes: dict[str, tuple[int, ...]] = {
            name.removeprefix(prefix): tuple(entry.size)
            for name, entry in self._metadata.state_dict_metadata.items()
            if name.startswith(prefix) and isinstance(entry, TensorStorageMetadata)
        }
        self.lora = checkpoint.trained.get("lora")
        """The options of the adapters, if there are some."""
        self.adapted: dict[str, list[str]] = defaultdict(list)
        """Weights that have adapters, and the modules in each of them that have one."""
        for found in map(_ADAPTER.fullmatch, shapes if self.lora else ()):
            if found:
                self.adapted[f"{found[1]}.weight"].append(found[2])
        self.shapes = {name: shape for name, shape in shapes.items() if ".lora_" not in name}
        """Name and global shape of every weight; the layers' weights are stacked along the first axis, those of
        experts along the second."""
        self._all = shapes
        self._model = model_config(checkpoint) if self.lora else None
        self.dtypes: dict[str, torch.dtype] = {
            name: cast(TensorStorageMetadata, self._metadata.state_dict_metadata[prefix + name]).properties.dtype
            for name in self.shapes
        }
        """The types that they are stored in."""

    def read(self, name: str, index: tuple[int, ...] = ()) -> Tensor:
        """One weight, or the part of it with this index along its first axes: `(layer,)` or `(layer, expert)`.

        Where it was written in one piece nothing is copied.

        Returns:
            In the type that it is stored in, of the global shape, without the axes of the index.

        Raises:
            CheckpointError: A file is damaged.
        """
        values = self._read(name, index)
        return values + self._added(name, index) if name in self.adapted else values

    def adapter(self, name: str, module: str, layer: int) -> tuple[Tensor, Tensor]:
        """A [r, in] and B [out, r] of a module in one of our weights, float32.

        Raises:
            CheckpointError: A file is damaged.
        """
        matrix = name.removesuffix("weight")
        first, second = (self._read(f"{matrix}{module}.lora_{half}.weight", (layer,)) for half in "AB")
        return first, second

    def _added(self, name: str, index: tuple[int, ...]) -> Tensor:
        """What the adapters add to a weight, or to a layer's: lora_alpha / r * B A, in the rows of each module."""
        assert self.lora is not None
        assert self._model is not None
        if not index:
            return torch.stack([self._added(name, (layer,)) for layer in range(self.shapes[name][0])])
        (layer,) = index
        added = torch.zeros(self.shapes[name][1:])
        for module in self.adapted[name]:
            first, second = self.adapter(name, module, layer)
            rows = module_rows(name.split(".")[-2], module, self._model)
            added[slice(None) if rows is None else rows] = self.lora["lora_alpha"] / self.lora["r"] * (second @ first)
        return added

    def _read(self, name: str, index: tuple[int, ...]) -> Tensor:
        shape = self._all[name]
        inner = shape[len(index) :]
        size = torch.Size((*(1 for _ in index), *inner))
        offset = torch.Size((*index, *(0 for _ in inner)))
        box = Holding(self._prefix + name, torch.Size(shape), offset, size, torch.empty(size, device="meta"))
        whole: Tensor | None = None
        for item, values in self._boxes(LoadPlanner([box]), self._around(name, index)):
            if values.shape == size:
                return values.view(inner)
            whole = fresh(size, values.dtype) if whole is None else whole
            part = tuple(slice(at, at + count) for at, count in zip(item.dest_offsets, item.lengths, strict=True))
            whole[part] = values
        assert whole is not None, "the plan covers the box"
        return whole.view(inner)

    def fill(self, boxes: Sequence[Holding]) -> None:
        """Fill boxes of the checkpoint's tensors, in this process alone.

        Raises:
            CheckpointError: A tensor or file is missing, damaged or of another shape.
        """
        planner = LoadPlanner(boxes)
        for item, values in self._boxes(planner, self._metadata):
            planner.resolve_tensor(item).copy_(values)
        for box in boxes:
            if (name := box.name.removeprefix(self._prefix)) in self.adapted:
                part = tuple(slice(at, at + size) for at, size in zip(box.offset[1:], box.shape[1:], strict=True))
                box.values.add_(self._added(name, (box.offset[0],))[part].view(box.shape))

    def _around(self, name: str, index: tuple[int, ...]) -> Metadata:
        """The list of tensors cut down to what may hold a part of this one: of experts there are thousands, and torch
        would look at each for each."""
        full = self._prefix + name
        stored = cast(TensorStorageMetadata, self._metadata.state_dict_metadata[full])
        if (name, len(index)) not in self._stored_at:
            found: dict[tuple[int, ...], list[ChunkStorageMetadata]] = defaultdict(list)
            for chunk in stored.chunks:
                spans = zip(chunk.offsets[: len(index)], chunk.sizes[: len(index)], strict=True)
                for at in product(*(range(begin, begin + size) for begin, size in spans)):
                    found[at].append(chunk)
            self._stored_at[name, len(index)] = found
        chunks = self._stored_at[name, len(index)].get(index, [])
        return Metadata({full: replace(stored, chunks=chunks)})

    def _boxes(self, planner: LoadPlanner, metadata: Metadata) -> Iterator[tuple[ReadItem, Tensor]]:
        try:
            planner.set_up_planner({}, metadata, is_coordinator=True)
            yield from self._reader.boxes(planner.create_local_plan())
        except BigTrainError:
            raise
        except Exception as error:  # of what torch makes a tensor of
            raise CheckpointError(f"cannot read {self._checkpoint.path}: {error}") from error


def weight_shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """Name and global shape of every weight, as :class:`Weights` has them.

    Raises:
        CheckpointError: The list of tensors cannot be read.
    """
    return Weights(checkpoint).shapes


def read_weights(checkpoint: Checkpoint, wanted: Sequence[tuple[str, tuple[int, ...]]]) -> dict:
    """Read whole weights `(name, ())`, or those of one layer `(name, (layer,))`, all into memory.

    Returns:
        As :meth:`Weights.read` gives them.

    Raises:
        CheckpointError: A file is damaged.
    """
    weights = Weights(checkpoint)
    return {key: weights.read(*key) for key in wanted}


def read_into(checkpoint: Checkpoint, boxes: Sequence[Holding]) -> None:
    """Fill boxes of the checkpoint's tensors, as :meth:`Weights.fill`."""
    Weights(checkpoint).fill(boxes)
