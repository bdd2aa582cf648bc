"""Norms against PyTorch's and transformers' own, forward and backward."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from bigtrain.config import Config
from bigtrain.models.gpt import transformer_config
from bigtrain.models.norm import Norm

WIDTH = 48
PEERS: dict[str, Callable[[float], nn.Module]] = {
    "rmsnorm": lambda eps: LlamaRMSNorm(WIDTH, eps),
    "layernorm": lambda eps: nn.LayerNorm(WIDTH, eps),
}


def pair(config: Config, eps: float) -> tuple[Norm, nn.Module]:
    """Ours and the peer with the same random weights."""
    ours, peer = Norm(transformer_config(config), WIDTH, eps), PEERS[config.model.normalization](eps)
    for mine, theirs in zip(ours.parameters(), peer.parameters(), strict=True):
        with torch.no_grad():
            theirs.add_(torch.randn(WIDTH) / 4)
            mine.copy_(theirs)
    return ours, peer


def results(norm: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, and the gradients of input and weights under an uneven loss."""
    x = x.clone().requires_grad_()
    out = norm(x)
    (out.float() * torch.linspace(-1, 2, out.numel()).view_as(out)).sum().backward()
    return [out.detach(), *(t.grad for t in (x, *norm.parameters()) if t.grad is not None)]


@pytest.mark.parametrize("kind", PEERS)
@pytest.mark.parametrize("eps", [1e-5, 0.5])
def test_equals_the_peer(kind: str, eps: float, tiny: Callable[..., Config]) -> None:
    ours, peer = pair(tiny(f"model.normalization={kind}"), eps)
    x = 3 * torch.randn(5, 2, WIDTH) + 1
    for mine, theirs in zip(results(ours, x), results(peer, x), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", PEERS)
def test_bf16_takes_its_statistics_in_float32(kind: str, tiny: Callable[..., Config]) -> None:
    """Against the float32 result of the same numbers: off by the output's rounding alone."""
    ours, peer = pair(tiny(f"model.normalization={kind}", "training.precision=bf16"), 1e-5)
    for theirs, mine in zip(peer.parameters(), ours.parameters(), strict=True):
        theirs.data.copy_(mine.float())
    x = (100 + torch.randn(64, WIDTH)).bfloat16()  # a large mean: sums in bf16 would lose all of the variance
    out = ours(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), peer(x.float()), rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize("kind", PEERS)
@pytest.mark.parametrize("sequence", [True, False])
def test_tells_the_engine_when_its_gradient_is_a_part(kind: str, sequence: bool, tiny: Callable[..., Config]) -> None:
    config = tiny(f"model.normalization={kind}", "parallel.tensor=2", f"parallel.sequence={str(sequence).lower()}")
    norm = Norm(transformer_config(config), WIDTH)
    assert [p.sequence_parallel for p in norm.parameters()] == [sequence] * (2 if kind == "layernorm" else 1)
