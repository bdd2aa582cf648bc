"""Experts in one process, beside the same sums written out; `tests/distributed` has them on several."""

from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from bigtrain.config import Config
from bigtrain.data.loader import CausalBatch
from bigtrain.models.experts import Router, router_losses, take_router_losses
from bigtrain.parallel.engine import Engine

Tiny = Callable[..., Config]
EngineOf = Callable[[Config], Engine]
Batches = Callable[..., list[CausalBatch]]
EXPERTS = "model.num_experts=4"


@pytest.fixture
def group(world: object) -> dist.ProcessGroup:
    """A group of this process."""
    return dist.new_group([0])


@pytest.mark.parametrize(("chosen", "scaled"), [(1, False), (2, True), (2, False), (3, True), (4, False)])
def test_a_token_gets_the_weighted_sum_of_its_experts(
    chosen: int, scaled: bool, tiny: Tiny, engine_of: EngineOf
) -> None:
    config = tiny(EXPERTS, f"model.num_experts_per_tok={chosen}", f"model.norm_topk_prob={str(scaled).lower()}")
    layer = engine_of(config).chunks[0].module.decoder.layers[0].mlp
    tokens = torch.randn(5, 2, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        layer.router.weight.mul_(30)
        found, _ = layer(tokens)
        for token, got in zip(tokens.flatten(0, 1), found.flatten(0, 1), strict=True):
            weights, experts = (layer.router.weight @ token).softmax(0).topk(chosen)
            weights = weights / weights.sum() if scaled else weights
            expected = torch.zeros(32)
            for weight, expert in zip(weights, experts, strict=True):
                ours = layer.experts.local_experts[expert]
                gate, up = (ours.linear_fc1.weight @ token).chunk(2)
                expected += weight * (ours.linear_fc2.weight @ (F.silu(gate) * up))
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-7)


def test_the_losses_of_a_router_that_is_even_and_of_one_that_is_not(group: dist.ProcessGroup) -> None:
    """Known without a calculator: 1 and log(E)^2 for equal logits, E and the logit squared where one gets all."""
    even = router_losses(
        torch.zeros(8, 2, 4), torch.eye(4, dtype=torch.bool).repeat(2, 1)[:, None].expand(8, 2, 4), group
    )
    torch.testing.assert_close(even, torch.tensor([1.0, torch.tensor(4.0).log().square()]))
    one_gets_all = torch.zeros(8, 2, 4)
    one_gets_all[..., 1] = 50
    losses = router_losses(one_gets_all, one_gets_all > 0, group)
    torch.testing.assert_close(losses, torch.tensor([4.0, 2500.0]))


def test_what_a_sequence_loses_does_not_depend_on_its_company(group: dist.ProcessGroup) -> None:
    logits = torch.randn(16, 6, 4, generator=torch.Generator().manual_seed(0))
    chosen = torch.zeros_like(logits, dtype=torch.bool).scatter_(-1, logits.topk(2).indices, True)
    alone = [router_losses(logits[:, i : i + 1], chosen[:, i : i + 1], group) for i in range(6)]
    torch.testing.assert_close(router_losses(logits, chosen, group), torch.stack(alone).mean(0))
    assert torch.stack(alone).std(0).min() > 1e-3, "the sequences differ"


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_each_forward_pass_of_training_counts_once(
    recompute: str, tiny: Tiny, engine_of: EngineOf, batches_of: Batches
) -> None:
    """And validation counts nothing."""
    words = (EXPERTS, "model.router_aux_loss_coef=0.5", "model.router_z_loss_coef=0.5")
    config = tiny(*words, f"training.recompute={recompute}")
    plain, engine = engine_of(tiny(*words)), engine_of(config)
    for step in range(2):
        engine.evaluate(batches_of(config, 100 + step))
        expected, found = (e.train_step(batches_of(config, step), 64, 1e-2, step) for e in (plain, engine))
        assert found.router_losses is not None
        assert torch.equal(found.router_losses, expected.router_losses)
        assert found.grad_norm == expected.grad_norm
    assert all(not module.losses for module in engine.chunks[0].module.modules() if isinstance(module, Router))


def test_the_losses_told_are_those_of_each_layer_and_micro_batch(
    tiny: Tiny, engine_of: EngineOf, batches_of: Batches, group: dist.ProcessGroup
) -> None:
    config = tiny(EXPERTS)
    engine, batches = engine_of(config), batches_of(config)
    module = engine.chunks[0].module.train()
    for batch in batches:
        module(batch.input_ids, batch.position_ids, None, labels=batch.labels)
    by_hand = take_router_losses([module]) / (2 * len(batches))  # layers x micro-batches
    result = engine.train_step(batches, 64, 1e-3, 0)
    torch.testing.assert_close(result.router_losses, by_hand)


@pytest.mark.parametrize("kind", ["aux", "z"])
def test_a_heavy_loss_is_learned(kind: str, tiny: Tiny, engine_of: EngineOf, batches_of: Batches) -> None:
    """Whichever counts most falls."""
    coefs = {"aux": 0.0, "z": 0.0, kind: 100.0}
    config = tiny(
        EXPERTS,
        "model.initializer_range=0.3",  # a router that has its favourites
        *(f"model.router_{name}_loss_coef={value}" for name, value in coefs.items()),
    )
    engine, index = engine_of(config), ["aux", "z"].index(kind)
    history = []
    for step in range(12):
        losses = engine.train_step(batches_of(config), 64, 1e-2, step).router_losses
        assert losses is not None
        history.append(losses[index].item())
    assert history[-1] - 1 < 0.8 * (history[0] - 1) if kind == "aux" else history[-1] < 0.8 * history[0]


def test_a_model_without_experts_has_no_such_losses(tiny: Tiny, engine_of: EngineOf, batches_of: Batches) -> None:
    config = tiny()
    assert engine_of(config).train_step(batches_of(config), 64, 1e-3, 0).router_losses is None
