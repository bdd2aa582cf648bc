"""Where each local parameter lies in the global model: the ground of layout independence.

Megatron-core's `sharded_state_dict` names every parameter by a global key and says which box of the
global tensor this process holds. Layers are stacked: `decoder.layers.mlp.linear_fc2.weight` has the
layer as its first axis. A gated feed-forward's first matrix holds two boxes, the gate's and the up
projection's, one after the other.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from torch import nn


@dataclass(frozen=True)
class Box:
    """A contiguous flat range of a local parameter that is one box of a global tensor."""

    key: str
    """Name of the global tensor."""
    global_shape: tuple[int, ...]
    offset: tuple[int, ...]
    """Corner of the box in the global tensor."""
    shape: tuple[int, ...]
    """Size of the box along each global axis."""
    start: int
    """Where the box begins in the flattened local parameter."""
    is_first_copy: bool
    """False where another tensor or pipeline rank holds the same box and counts as its holder."""

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class ShardedParameter:
    """A local parameter and its boxes."""

    parameter: nn.Parameter
    boxes: tuple[Box, ...]


def sharded_parameters(chunks: Sequence[nn.Module]) -> list[ShardedParameter]:
    """Every parameter of this process once, in the order of the modules.

    Take it before DeepSpeed gets the model: ZeRO-3 empties the parameters.
    """
    found: dict[int, ShardedParameter] = {}
    for chunk in chunks:
        parameters = {p.data_ptr(): p for p in chunk.parameters()}
        for entry in chunk.sharded_state_dict().values():  # type: ignore[operator]
            if not isinstance(entry, ShardedTensor | ShardedTensorFactory) or entry.data is None:
                continue  # extra states of modules
            parameter = parameters.get(entry.data.data_ptr())
            assert parameter is not None, f"{entry.key} is not a parameter"
            assert parameter.shape == entry.data.shape, f"{entry.key} is a part of a parameter"
            boxes = tuple(_box(start, piece) for start, piece in _pieces(entry))
            found.setdefault(id(parameter), ShardedParameter(parameter, boxes))
    missing = [n for chunk in chunks for n, p in chunk.named_parameters() if id(p) not in found]
    assert not missing, f"Megatron-core does not say where these lie: {missing}"
    return list(found.values())


def _box(start: int, piece: ShardedTensor) -> Box:
    # replica_id is (copy along the pipeline, along tensor parallel, along data parallel); every data-parallel
    # rank holds all boxes of its model-parallel place, so that axis does not decide.
    return Box(
        key=piece.key,
        global_shape=tuple(piece.global_shape),
        offset=tuple(piece.global_offset),
        shape=(1,) * piece.prepend_axis_num + tuple(piece.local_shape),
        start=start,
        is_first_copy=not any(piece.replica_id[:2]),
    )


def _pieces(entry: ShardedTensor | ShardedTensorFactory) -> list[tuple[int, ShardedTensor]]:
    """The global pieces of an entry, each with its start in the flattened local tensor."""
    if isinstance(entry, ShardedTensor):
        return [(0, entry)]
    # A factory cuts the tensor when it is saved. Cutting a tensor of indices shows where its cuts lie.
    index = torch.arange(entry.data.numel()).view(entry.data.shape)
    pieces = []
    for piece in entry.build_fn(entry.key, index, entry.replica_id, None):
        flat = piece.data.reshape(-1)
        start = int(flat[0])
        assert torch.equal(flat, torch.arange(start, start + flat.numel())), f"{entry.key}: a piece is not contiguous"
        pieces.append((start, piece))
    return pieces
