"""Attention to a block of the keys: blocks merged by their sums are the whole, whichever kernel does them."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from bigtrain.models import block
from bigtrain.models.block import Attended, attend, attend_backward

KERNELS: dict[str, tuple[Callable[..., Attended], Callable[..., Any]]] = {
    "torch": (attend, attend_backward),
    "plain": (
        block._attend_plainly,
        lambda g, q, k, v, merged, *rest: block._attend_plainly_backward(
            g, q, k, v, merged.out, merged.logsumexp, *rest
        ),
    ),
}
SCALE = 0.3


def tensors(heads: int, kv_heads: int, queries: int, keys: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(heads + keys)
    shapes = [(heads, queries), (kv_heads, keys), (kv_heads, keys), (heads, queries)]
    return [torch.randn(2, *shape, 8).to(dtype) for shape in shapes]


def written_out(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """(output, logarithm of the softmax's sum) in float64."""
    share = query.shape[1] // key.shape[1]
    scores = torch.einsum("bhnd,bhmd->bhnm", query, key.repeat_interleave(share, 1)) * SCALE
    if causal:
        scores = scores + torch.full(scores.shape[-2:], -math.inf, dtype=scores.dtype).triu(1)
    out = torch.einsum("bhnm,bhmd->bhnd", scores.softmax(-1), value.repeat_interleave(share, 1))
    return out, scores.exp().sum(-1).log()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("heads", "kv_heads", "queries", "keys", "causal"), [
    (4, 4, 6, 6, True),
    (4, 2, 6, 6, True),
    (4, 1, 4, 8, False),
    (6, 2, 8, 4, False),
])  # fmt: skip
def test_a_block_and_its_gradients(
    heads: int, kv_heads: int, queries: int, keys: int, causal: bool, kernel: str
) -> None:
    forward, backward = KERNELS[kernel]
    *given, grad = tensors(heads, kv_heads, queries, keys)
    exact = [x.double().requires_grad_() for x in given]
    out, logsumexp = written_out(*exact, causal)
    found = forward(*given, causal, SCALE)
    torch.testing.assert_close(found.out.double(), out, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.logsumexp.double(), logsumexp, rtol=1e-5, atol=1e-5)
    gradients = backward(grad, *given, found, causal, SCALE)
    for ours, theirs in zip(gradients, torch.autograd.grad(out, exact, grad.double()), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_block_of_several_gives_its_share_of_the_gradient(kernel: str) -> None:
    """What `attend_backward` is for: weights out of the sum over all keys, not the block's own."""
    _, backward = KERNELS[kernel]
    query, key, value, grad = tensors(4, 2, 6, 8)
    exact = [x.double().requires_grad_() for x in (query, key, value)]
    out, logsumexp = written_out(*exact, causal=False)
    q_grad, k_grad, v_grad = torch.autograd.grad(out, exact, grad.double())
    merged = Attended(out.detach().float(), logsumexp.detach().float())
    shares = [
        backward(grad, query, key[:, :, part], value[:, :, part], merged, False, SCALE)
        for part in (slice(3), slice(3, None))
    ]
    torch.testing.assert_close(sum(share[0] for share in shares).double(), q_grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.cat([share[1] for share in shares], 2).double(), k_grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.cat([share[2] for share in shares], 2).double(), v_grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_what_a_gpu_would_be_asked(dtype: torch.dtype) -> None:
    """Tensors without memory take the road of a GPU: flash is called as this torch declares it, or done without."""
    *given, grad = (x.to("meta") for x in tensors(4, 2, 6, 6, dtype))
    found = attend(*given, True, SCALE)
    assert len(found.state) == (4 if dtype == torch.bfloat16 else 0)
    assert (found.out.shape, found.out.dtype) == (given[0].shape, dtype)
    assert (found.logsumexp.shape, found.logsumexp.dtype) == (given[0].shape[:3], torch.float32)
    gradients = attend_backward(grad, *given, found, True, SCALE)
    assert [(x.shape, x.dtype) for x in gradients] == [(x.shape, dtype) for x in given]
