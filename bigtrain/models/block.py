"""Attention to a block of the keys, forward and backward, by those of torch's kernels that tell the softmax's sum.

`F.scaled_dot_product_attention` keeps that sum to itself, without which blocks cannot be merged; the kernels
beneath it do not. In shapes: b sequences, n queries, m keys, d the width of a head.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

_WIDEST_FLASH_HEAD = 256  # of the CUDA kernel, which takes multiples of 8

aten = torch.ops.aten


class Attended(NamedTuple):
    """Attention to a block."""

    out: Tensor
    """[b, heads, n, d], in the type of the query; the weights of a query sum to 1 over the block."""
    logsumexp: Tensor
    """[b, heads, n] float32: the logarithm of the sum of the exponentials of the query's scores."""
    state: tuple[Any, ...] = ()
    """What else the kernel's backward pass wants to see again; the same for every block."""


def attend(query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float) -> Attended:
    """softmax(scale q k^T) v over one block.

    Args:
        query: [b, heads, n, d]
        key, value: [b, key/value heads, m, d]; each serves heads / kv heads query heads
        causal: Query i sees keys 0 to i; n and m are equal. Else all see all.
        scale: Factor of the scores.
    """
    if query.device.type == "cpu":
        out, logsumexp = aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, causal, scale=scale)
        return Attended(out, logsumexp)
    if _flash_takes(query):
        found = aten._scaled_dot_product_flash_attention(query, key, value, 0.0, causal, scale=scale)
        out, logsumexp, end_q, end_k, _, _, seed, offset, _ = found
        return Attended(out, logsumexp, (end_q, end_k, seed, offset))
    return _attend_plainly(query, key, value, causal, scale)


def attend_backward(
    grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, merged: Attended, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """What a block adds to the gradients of its query, key and value.

    Args:
        grad_out: [b, heads, n, d]
        merged: The result over *all* blocks that the query sees: with its sum the scores give the final weights.
    """
    out, logsumexp, state = merged.out, merged.logsumexp.contiguous(), merged.state
    given = (grad_out, query, key, value, out, logsumexp)
    if query.device.type == "cpu":
        return aten._scaled_dot_product_flash_attention_for_cpu_backward(*given, 0.0, causal, scale=scale)
    if _flash_takes(query):
        end_q, end_k, seed, offset = state
        lengths = (end_q, end_k, query.shape[2], key.shape[2])
        return aten._scaled_dot_product_flash_attention_backward(
            *given, *lengths, 0.0, causal, seed, offset, scale=scale
        )
    return _attend_plainly_backward(*given, causal, scale)


def _flash_takes(query: Tensor) -> bool:
    width = query.shape[-1]
    return query.dtype in (torch.bfloat16, torch.float16) and width <= _WIDEST_FLASH_HEAD and width % 8 == 0


def _attend_plainly(query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float) -> Attended:
    """For what flash does not take on a GPU, float32 above all: the block's scores are held in memory."""
    scores = _scores(query, key, causal, scale)
    logsumexp = scores.logsumexp(-1)
    weights = (scores - logsumexp.unsqueeze(-1)).exp().to(value.dtype)
    return Attended((weights @ value.unsqueeze(2)).flatten(1, 2), logsumexp.flatten(1, 2))


def _attend_plainly_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    kv_heads = key.shape[1]
    grad, q, out, total = (x.unflatten(1, (kv_heads, -1)) for x in (grad_out, query, out, logsumexp))
    weights = (_scores(query, key, causal, scale) - total.unsqueeze(-1)).exp()
    grad_value = weights.to(grad.dtype).transpose(-1, -2) @ grad
    mean = (grad.float() * out.float()).sum(-1, keepdim=True)
    grad_scores = weights * ((grad @ value.unsqueeze(2).transpose(-1, -2)).float() - mean) * scale
    grad_scores = grad_scores.to(query.dtype)
    grad_query = grad_scores @ key.unsqueeze(2)
    grad_key = grad_scores.transpose(-1, -2) @ q
    return grad_query.flatten(1, 2), grad_key.sum(2), grad_value.sum(2)


def _scores(query: Tensor, key: Tensor, causal: bool, scale: float) -> Tensor:
    """[b, key/value heads, heads / kv heads, n, m] float32, minus infinity where masked."""
    grouped = query.unflatten(1, (key.shape[1], -1))
    scores = (grouped @ key.unsqueeze(2).transpose(-1, -2)).float() * scale
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -math.inf)
    return scores
