"""Attention over a sequence that several processes share, keys and values going around (arXiv:2310.01889).

Each process keeps its queries. The keys and values of its part of the sequence are sent from process to
process while attention to those that are here is computed; the results of the blocks are merged by
the logarithms of their softmax's sums, as in flash attention (arXiv:2205.14135). In the backward pass the
gradients of keys and values travel with them, and come home after c steps.

In shapes: n tokens of this process, which are two chunks as :mod:`bigtrain.models.context` says, b
sequences, d the width of a head.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bigtrain.models.block import Attended, attend, attend_backward


def ring_attention(
    query: Tensor, key: Tensor, value: Tensor, group: dist.ProcessGroup, scale: float | None = None
) -> Tensor:
    """Causal attention of this process's queries to the whole sequence.

    Args:
        query: [b, heads, n, d]
        key, value: [b, key/value heads, n, d]; each serves heads / kv heads query heads
        group: The processes that share the sequence.
        scale: Factor of the scores; default: 1 / sqrt(d).

    Returns:
        [b, heads, n, d], in the type of `query`. Blocks are merged, and gradients summed, in float32.
    """
    return _Ring.apply(query, key, value, group, scale or 1 / math.sqrt(query.shape[-1]))


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, group: dist.ProcessGroup, scale: float) -> Tensor:
        out = torch.zeros(query.shape, dtype=torch.float32, device=query.device)
        logsumexp = torch.full(query.shape[:-1], -math.inf, dtype=torch.float32, device=query.device)
        keys_values = torch.stack((key, value))
        for source, (k, v) in _around(keys_values, group):
            mine, theirs, causal = _seen(source, group.rank(), query.shape[2])
            block = attend(query[:, :, mine], k[:, :, theirs], v[:, :, theirs], causal, scale)
            total = torch.logaddexp(logsumexp[:, :, mine], block.logsumexp)
            out[:, :, mine] *= (logsumexp[:, :, mine] - total).exp().unsqueeze(-1)
            out[:, :, mine] += block.out * (block.logsumexp - total).exp().unsqueeze(-1)
            logsumexp[:, :, mine] = total
        out = out.to(query.dtype)
        ctx.save_for_backward(query, keys_values, out, logsumexp)
        ctx.group, ctx.scale, ctx.state = group, scale, block.state
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        query, keys_values, out, logsumexp = ctx.saved_tensors
        (grad_out,) = grad_outputs
        if grad_out.stride(-1) != 1:  # an expanded one; the kernels read rows
            grad_out = grad_out.contiguous()
        grad_query = torch.zeros(query.shape, dtype=torch.float32, device=query.device)
        grads = torch.zeros(keys_values.shape, dtype=torch.float32, device=query.device)
        arriving: Callable[[], Tensor] | None = None
        for source, (k, v) in _around(keys_values, ctx.group):
            mine, theirs, causal = _seen(source, ctx.group.rank(), query.shape[2])
            given = (grad_out[:, :, mine], query[:, :, mine], k[:, :, theirs], v[:, :, theirs])
            merged = Attended(out[:, :, mine], logsumexp[:, :, mine], ctx.state)
            q_grad, k_grad, v_grad = attend_backward(*given, merged, causal, ctx.scale)
            grad_query[:, :, mine] += q_grad
            if arriving is not None:  # what the process before has gathered for the same keys and values
                grads = arriving()
            grads[0, :, :, theirs] += k_grad
            grads[1, :, :, theirs] += v_grad
            arriving = _send_on(grads, ctx.group)
        assert arriving is not None, "the first block is this process's own"
        grad_key, grad_value = arriving().to(query.dtype)
        return grad_query.to(query.dtype), grad_key, grad_value, None, None


def _seen(source: int, rank: int, length: int) -> tuple[slice, slice, bool]:
    """Which of process `rank`'s queries see which of `source`'s keys, and whether causally; what is left out is masked.

    Of a process's two chunks the first lies in the first half of the sequence and the second in the second half: the
    earlier process the earlier the one, and the later the other.
    """
    everything, first, second = slice(None), slice(length // 2), slice(length // 2, None)
    if source == rank:
        return everything, everything, True
    if source < rank:
        return everything, first, False
    return second, everything, False


def _around(tensor: Tensor, group: dist.ProcessGroup) -> Iterator[tuple[int, Tensor]]:
    """(rank, its tensor) of this process and then of those before it, each sent on while the caller works on it."""
    size, rank = group.size(), group.rank()
    for step in range(size):
        arriving = _send_on(tensor, group) if step < size - 1 else None
        yield (rank - step) % size, tensor
        if arriving is not None:
            tensor = arriving()


def _send_on(tensor: Tensor, group: dist.ProcessGroup) -> Callable[[], Tensor]:
    """Begin to send `tensor` to the next process; what is returned waits for that of the one before.

    `tensor` must not change until then.
    """
    size, rank = group.size(), group.rank()
    received = torch.empty_like(tensor)
    requests = dist.batch_isend_irecv(
        [
            dist.P2POp(dist.isend, tensor, group=group, group_peer=(rank + 1) % size),
            dist.P2POp(dist.irecv, received, group=group, group_peer=(rank - 1) % size),
        ]
    )

    def wait() -> Tensor:
        for request in requests:
            request.wait()
        return received

    return wait
