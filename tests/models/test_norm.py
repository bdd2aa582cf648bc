"""Norms against PyTorch's and transformers' own, forward and backward."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from bigtrain.config import Config
from bigtrain.models.gpt import transformer_config
from bigtrain.models.norm import HeadNorm, Norm, ProjectionNorm
from bigtrain.parallel.topology import Layout

WIDTH = 48


class ZeroCenteredLayerNorm(nn.LayerNorm):
    """Nemotron's: one is added to the weight."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x, self.normalized_shape, self.weight + 1, self.bias, self.eps)


PEERS: dict[str, Callable[[float], nn.Module]] = {
    "rmsnorm": lambda eps: LlamaRMSNorm(WIDTH, eps),
    "layernorm": lambda eps: nn.LayerNorm(WIDTH, eps),
    "rmsnorm model.zero_centered_norm=true": lambda eps: Gemma2RMSNorm(WIDTH, eps),
    "layernorm model.zero_centered_norm=true": lambda eps: ZeroCenteredLayerNorm(WIDTH, eps),
}


def words(kind: str) -> list[str]:
    return f"model.normalization={kind}".split()


def pair(kind: str, config: Config, eps: float) -> tuple[Norm, nn.Module]:
    """Ours and the peer with the same random weights."""
    ours, peer = Norm(transformer_config(config), WIDTH, eps), PEERS[kind](eps)
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
    ours, peer = pair(kind, tiny(*words(kind)), eps)
    x = 3 * torch.randn(5, 2, WIDTH) + 1
    for mine, theirs in zip(results(ours, x), results(peer, x), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", PEERS)
def test_bf16_takes_its_statistics_in_float32(kind: str, tiny: Callable[..., Config]) -> None:
    """Against the float32 result of the same numbers: off by the output's rounding alone."""
    ours, peer = pair(kind, tiny(*words(kind), "training.precision=bf16"), 1e-5)
    for theirs, mine in zip(peer.parameters(), ours.parameters(), strict=True):
        theirs.data.copy_(mine.float())
    x = (100 + torch.randn(64, WIDTH)).bfloat16()  # a large mean: sums in bf16 would lose all of the variance
    out = ours(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), peer(x.float()), rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize("kind", PEERS)
@pytest.mark.parametrize("sequence", [True, False])
def test_tells_the_engine_when_its_gradient_is_a_part(kind: str, sequence: bool, tiny: Callable[..., Config]) -> None:
    config = tiny(*words(kind), "parallel.tensor=2", f"parallel.sequence={str(sequence).lower()}")
    mcore = transformer_config(config)
    count = 2 if "layernorm" in kind else 1
    assert [p.sequence_parallel for p in Norm(mcore, WIDTH).parameters()] == [sequence] * count
    assert [p.sequence_parallel for p in HeadNorm(mcore, WIDTH).parameters()] == [True] * count, "its heads are a part"


@pytest.mark.parametrize("zero_centered", ["false", "true"])
def test_all_heads_together(zero_centered: str, world: Layout, tiny: Callable[..., Config]) -> None:
    """On one process that of one wide head; `tests/distributed` has it cut."""
    mcore = transformer_config(tiny(f"model.zero_centered_norm={zero_centered}"))
    ours = ProjectionNorm(mcore, WIDTH, eps=0.1)
    peer = (Gemma2RMSNorm if zero_centered == "true" else LlamaRMSNorm)(WIDTH, 0.1)
    ours.weight.data.copy_(torch.randn(WIDTH))
    peer.weight.data.copy_(ours.weight)
    x = torch.randn(5, 2, WIDTH)
    heads, wide = x.unflatten(-1, (3, -1)).requires_grad_(), x.clone().requires_grad_()
    found, expected = ours(heads), peer(wide)
    torch.testing.assert_close(found.flatten(2), expected, rtol=1e-5, atol=1e-5)
    found.pow(3).sum().backward()
    expected.pow(3).sum().backward()
    torch.testing.assert_close(heads.grad.flatten(2), wide.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.weight.grad, peer.weight.grad, rtol=1e-4, atol=1e-4)
