"""Boxes of global tensors, and plans that let torch's distributed checkpoint write and read them."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    ReadItem,
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from bigtrain.errors import CheckpointError

PREFIXES = {"weight": "model.", "exp_avg": "optimizer.exp_avg.", "exp_avg_sq": "optimizer.exp_avg_sq."}
"""Names in a checkpoint: the float32 weights, and Adam's first and second moments."""


@dataclass(frozen=True)
class Holding:
    """A box of a global tensor, and the memory here that is its content."""

    name: str
    global_shape: torch.Size
    offset: torch.Size
    shape: torch.Size
    values: Tensor
    """A view of `shape` into the optimizer's float32 buffers, or into weights that are not trained, in their type."""


def state_dict(holdings: Sequence[Holding]) -> dict[str, Tensor]:
    """The boxes under names that are unique on this process, as torch wants a state dictionary."""
    return {f"{h.name}@{','.join(map(str, h.offset))}": h.values for h in holdings}


class SavePlanner(DefaultSavePlanner):
    """Writes each box as a chunk of its global tensor, in one type whatever it is held in.

    Values are looked up in the state dictionary that torch hands over, which under asynchronous saving
    is a copy.
    """

    def __init__(self, holdings: Sequence[Holding], dtype: torch.dtype = torch.float32) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._dtype = dtype
        self._holdings = dict(zip(state_dict(holdings), holdings, strict=True))
        self._names = {MetadataIndex(h.name, h.offset): name for name, h in self._holdings.items()}

    def create_local_plan(self) -> SavePlan:
        items = [
            WriteItem(
                index=MetadataIndex(holding.name, holding.offset),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    chunk=ChunkStorageMetadata(offsets=holding.offset, sizes=holding.shape),
                    properties=replace(TensorProperties.create_from_tensor(self.state_dict[name]), dtype=self._dtype),
                    size=holding.global_shape,
                ),
            )
            for name, holding in self._holdings.items()
        ]
        self.plan = SavePlan(items)
        return self.plan

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        return self.state_dict[self._names[MetadataIndex(index.fqn, index.offset)]].to(self._dtype)


class LoadPlanner(DefaultLoadPlanner):
    """Reads each box straight into the memory that holds it."""

    def __init__(self, holdings: Sequence[Holding]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._by_name: dict[str, list[Holding]] = defaultdict(list)
        for holding in holdings:
            self._by_name[holding.name].append(holding)
        self._values = {(h.name, h.offset): h.values for h in holdings}

    def create_local_plan(self) -> LoadPlan:
        assert self.metadata is not None
        items: list[ReadItem] = []
        for name, wanted in self._by_name.items():
            stored = self.metadata.state_dict_metadata.get(name)
            if not isinstance(stored, TensorStorageMetadata):
                raise CheckpointError(f"the checkpoint has no tensor {name}, which the model needs")
            if stored.size != wanted[0].global_shape:
                raise CheckpointError(
                    f"{name} is {tuple(stored.size)} in the checkpoint and {tuple(wanted[0].global_shape)} in the model"
                )
            chunks = [ChunkStorageMetadata(offsets=h.offset, sizes=h.shape) for h in wanted]
            found = create_read_items_for_chunk_list(name, stored, chunks)
            if sum(math.prod(item.lengths) for item in found) != sum(h.values.numel() for h in wanted):
                raise CheckpointError(f"the checkpoint holds only a part of {name}")  # torch would leave the rest as is
            items += found
        return LoadPlan(items)

    def resolve_tensor(self, read_item: ReadItem) -> Tensor:
        assert read_item.dest_index.offset is not None
        tensor = self._values[read_item.dest_index.fqn, torch.Size(read_item.dest_index.offset)]
        for axis, (offset, length) in enumerate(zip(read_item.dest_offsets, read_item.lengths, strict=True)):
            tensor = tensor.narrow(axis, offset, length)
        return tensor
