"""Context parallel: which part of a sequence a process holds, and attention by an exchange of heads.

A sequence is cut into 2 c chunks over c processes, of which process r holds chunks r and 2 c - 1 - r:
under a causal mask every process then has the same work, and Megatron-core cuts the rotary embedding
in the same way.

In shapes: s tokens of the whole sequence, b sequences, d the width of a head.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel.mappings import all_to_all
from torch import Tensor


def part_of_sequence(whole: Tensor, rank: int, size: int, dim: int = 1) -> Tensor:
    """What process `rank` of `size` holds of a tensor whose axis `dim` is the sequence."""
    if size == 1:
        return whole
    chunks = whole.chunk(2 * size, dim)
    return torch.cat([chunks[rank], chunks[2 * size - 1 - rank]], dim)


def to_heads(tensors: Sequence[Tensor], group: dist.ProcessGroup) -> tuple[Tensor, ...]:
    """From every head of a part of the sequence to every token of a part of the heads (Ulysses, arXiv:2309.14509).

    The tensors travel in one exchange, of which each process keeps 1/c and sends the rest.

    Args:
        tensors: [s/c, b, heads, d] each; its number of heads, which c divides, is its own.
        group: The c processes that share the sequence.

    Returns:
        [s, b, heads/c, d] each, the tokens in their order.
    """
    size = group.size()
    by_receiver = torch.cat([x.unflatten(2, (size, -1)).movedim(2, 0) for x in tensors], dim=3)
    by_sender = all_to_all(group, by_receiver).unflatten(1, (2, -1))  # [c, 2, s/2c, b, heads of all tensors / c, d]
    whole = torch.cat([*by_sender[:, 0], *reversed(by_sender[:, 1].unbind())])
    return whole.split([x.shape[2] // size for x in tensors], dim=2)


def to_sequence(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The way back of :func:`to_heads`: [s, b, heads/c, d] to [s/c, b, heads, d]."""
    size = group.size()
    by_receiver = torch.stack([part_of_sequence(x, rank, size, dim=0) for rank in range(size)])
    return all_to_all(group, by_receiver).movedim(0, 2).flatten(2, 3)
