"""A step of one process: loss, gradient, update; what must not change it, and what must."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from bigtrain.config import Config
from bigtrain.data.loader import CausalBatch
from bigtrain.parallel.engine import Engine, StepResult

Tiny = Callable[..., Config]
EngineOf = Callable[[Config], Engine]
Batches = Callable[..., list[CausalBatch]]
DROPOUT = ("model.hidden_dropout=0.2", "model.attention_dropout=0.2")


def weights(engine: Engine) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in engine.chunks[0].module.named_parameters()}


def same(one: StepResult, other: StepResult) -> bool:
    return bool(one.loss == other.loss and one.grad_norm == other.grad_norm)


def test_the_loss_is_the_mean_over_the_targets_that_count(tiny: Tiny, engine_of: EngineOf, batches_of: Batches) -> None:
    config = tiny()
    engine, batches = engine_of(config), batches_of(config)
    for batch in batches:
        batch.loss_mask[:, ::3] = 0
    counted = int(sum(batch.loss_mask.sum() for batch in batches))
    engine.zero.eval()
    with torch.no_grad():
        by_hand = sum(
            torch.nn.functional.cross_entropy(
                engine.chunks[0].module(b.input_ids, b.position_ids, None).flatten(0, 1),
                b.labels.flatten(),
                reduction="none",
            )[b.loss_mask.flatten() > 0].sum()
            for b in batches
        )
    evaluated = engine.evaluate(batches)
    result = engine.train_step(batches, counted, 1e-3, 0)
    assert evaluated.item() == pytest.approx(float(by_hand), rel=1e-6)
    assert result.loss.item() == pytest.approx(float(by_hand) / counted, rel=1e-6)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_size_of_micro_batches_changes_rounding_alone(
    stage: int, tiny: Tiny, engine_of: EngineOf, batches_of: Batches
) -> None:
    histories = []
    for size in (1, 2, 4):
        config = tiny(f"training.micro_batch_size={size}", f"parallel.zero_stage={stage}")
        engine = engine_of(config)
        results = [engine.train_step(batches_of(config, step), 64, 1e-2, step) for step in range(3)]
        histories.append([float(x) for result in results for x in (result.loss, result.grad_norm)])
    assert histories[1] == pytest.approx(histories[0], rel=1e-5)
    assert histories[2] == pytest.approx(histories[0], rel=1e-5)
    assert histories[0][0] != histories[0][2], "it learns"


def test_the_gradient_norm_is_that_of_all_parameters(tiny: Tiny, engine_of: EngineOf, batches_of: Batches) -> None:
    """Against plain autograd over the very modules."""
    config = tiny("parallel.zero_stage=0")
    reported = engine_of(config).train_step(batches_of(config), 64, 1e-3, 0).grad_norm
    module = engine_of(config).chunks[0].module
    parameters = list(module.parameters())
    loss = sum(module(b.input_ids, b.position_ids, None, labels=b.labels).sum() for b in batches_of(config)) / 64
    gradients = torch.autograd.grad(loss, parameters)
    assert reported.item() == pytest.approx(sum(g.double().square().sum() for g in gradients).sqrt().item(), rel=1e-6)


def test_a_rate_of_zero_changes_nothing(tiny: Tiny, engine_of: EngineOf, batches_of: Batches) -> None:
    config = tiny()
    engine = engine_of(config)
    before = weights(engine)
    engine.train_step(batches_of(config), 64, 0.0, 0)
    assert all(torch.equal(before[name], now) for name, now in weights(engine).items())


def test_the_first_update_is_adams(tiny: Tiny, engine_of: EngineOf, batches_of: Batches) -> None:
    """Adam's first step is lr * sign(gradient), and decay touches matrices alone."""
    config = tiny("optimizer.weight_decay=0.5", "optimizer.eps=1e-18", "model.linear_bias=true")
    engine = engine_of(config)
    before = weights(engine)
    engine.train_step(batches_of(config), 64, 1e-2, 0)
    for name, now in weights(engine).items():
        decayed = before[name] * (1 - 1e-2 * 0.5) if now.ndim > 1 else before[name]
        moved = (now - decayed).abs()
        touched = moved > 1e-6  # rows of tokens that did not occur have no gradient
        assert touched.any(), name
        torch.testing.assert_close(moved[touched], torch.full_like(moved[touched], 1e-2), rtol=1e-3, atol=0)


def test_the_gradient_is_clipped(tiny: Tiny, engine_of: EngineOf, batches_of: Batches) -> None:
    """With a large eps Adam's first step is proportional to the gradient, so that clipping shows."""
    moved = {}
    for norm in ("0.0", "0.01", "1000.0"):
        config = tiny(f"optimizer.max_grad_norm={norm}", "optimizer.eps=1e3", "optimizer.weight_decay=0.0")
        engine = engine_of(config)
        before = weights(engine)["output_layer.weight"]
        result = engine.train_step(batches_of(config), 64, 1e3, 0)
        moved[norm] = weights(engine)["output_layer.weight"] - before
    torch.testing.assert_close(moved["1000.0"], moved["0.0"])
    torch.testing.assert_close(moved["0.01"], moved["0.0"] * (0.01 / result.grad_norm), rtol=2e-3, atol=1e-8)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_offload_and_stages_give_the_same_steps(
    stage: int, tiny: Tiny, engine_of: EngineOf, batches_of: Batches
) -> None:
    plain, config = tiny("parallel.zero_stage=1"), tiny(f"parallel.zero_stage={stage}")
    engines = [engine_of(plain), engine_of(config)]
    if stage:
        engines.append(engine_of(tiny(f"parallel.zero_stage={stage}", "parallel.offload=optimizer")))
    for step in range(3):
        results = [engine.train_step(batches_of(plain, step), 64, 1e-2, step) for engine in engines]
        for result in results[1:]:
            assert result.loss.item() == pytest.approx(results[0].loss.item(), rel=1e-6)
            assert result.grad_norm.item() == pytest.approx(results[0].grad_norm.item(), rel=1e-6)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_bf16_sums_in_float32(stage: int, tiny: Tiny, engine_of: EngineOf, batches_of: Batches) -> None:
    """Sixteen times the same micro-batch: only a sum that rounds differs from the one of a single one."""
    words = ("training.precision=bf16", f"parallel.zero_stage={stage}", "training.global_batch_size=2")
    (batch,) = batches_of(tiny(*words))
    once = engine_of(tiny(*words)).train_step([batch], 32, 1e-3, 0)
    engine = engine_of(tiny(*words))
    often = engine.train_step([batch] * 16, 16 * 32, 1e-3, 0)
    assert {p.dtype for p in engine.chunks[0].module.parameters()} == {torch.bfloat16}
    assert often.loss.dtype == torch.float32
    assert often.loss.item() == pytest.approx(once.loss.item(), rel=1e-6)
    assert often.grad_norm.item() == pytest.approx(once.grad_norm.item(), rel=1e-6)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_bf16_is_near_float32(stage: int, tiny: Tiny, engine_of: EngineOf, batches_of: Batches) -> None:
    words = f"parallel.zero_stage={stage}"
    exact, rounded = engine_of(tiny(words)), engine_of(tiny(words, "training.precision=bf16"))
    for step in range(3):
        expected, found = (e.train_step(batches_of(tiny(), step), 64, 1e-3, step) for e in (exact, rounded))
        assert found.loss.item() == pytest.approx(expected.loss.item(), rel=2e-3)
        assert found.grad_norm.item() == pytest.approx(expected.grad_norm.item(), rel=1e-2)


@pytest.mark.parametrize("recompute", ["selective", "full"])
@pytest.mark.parametrize("stage", [1, 3])
def test_recomputing_changes_nothing_even_with_dropout(
    recompute: str, stage: int, tiny: Tiny, engine_of: EngineOf, batches_of: Batches
) -> None:
    words = (*DROPOUT, f"parallel.zero_stage={stage}")
    config = tiny(*words)
    plain, again = engine_of(config), engine_of(tiny(*words, f"training.recompute={recompute}"))
    for step in range(2):
        batches = batches_of(config, step)
        assert same(plain.train_step(batches, 64, 1e-2, step), again.train_step(batches, 64, 1e-2, step))


def test_dropout_is_a_function_of_seed_and_step(tiny: Tiny, engine_of: EngineOf, batches_of: Batches) -> None:
    """A rate of zero keeps the weights, so that only dropout can tell the steps apart."""
    config = tiny(*DROPOUT)
    engine, batches = engine_of(config), batches_of(config)
    first = engine.train_step(batches, 64, 0.0, 3)
    torch.rand(5)  # what others draw does not matter
    assert same(engine.train_step(batches, 64, 0.0, 3), first)
    assert not same(engine.train_step(batches, 64, 0.0, 4), first)
    engine.config = config.model_copy(update={"training": tiny("training.seed=5").training})
    assert not same(engine.train_step(batches, 64, 0.0, 3), first)


@pytest.mark.parametrize("kind", ["hidden", "attention"])
def test_each_dropout_drops_in_training_and_not_in_validation(
    kind: str, tiny: Tiny, engine_of: EngineOf, batches_of: Batches
) -> None:
    config = tiny()
    without, with_dropout = engine_of(config), engine_of(tiny(f"model.{kind}_dropout=0.3"))
    batches = batches_of(config)
    assert with_dropout.evaluate(batches) == without.evaluate(batches)
    assert with_dropout.train_step(batches, 64, 0.0, 0).loss != without.train_step(batches, 64, 0.0, 0).loss
    assert with_dropout.evaluate(batches) == without.evaluate(batches), "after a training step as well"


def test_validation_leaves_no_trace(tiny: Tiny, engine_of: EngineOf, batches_of: Batches) -> None:
    config = tiny(*DROPOUT)
    one, other = engine_of(config), engine_of(config)
    for step in range(2):
        other.evaluate(batches_of(config, 100 + step))
        batches = batches_of(config, step)
        assert same(one.train_step(batches, 64, 1e-2, step), other.train_step(batches, 64, 1e-2, step))


def test_a_batch_is_left_as_it_was(tiny: Tiny, engine_of: EngineOf, batches_of: Batches) -> None:
    config = tiny()
    batches = batches_of(config)
    engine_of(config).train_step(batches, 64, 1e-2, 0)
    for batch, fresh in zip(batches, batches_of(config), strict=True):
        assert all(torch.equal(getattr(batch, k), getattr(fresh, k)) for k in ("input_ids", "labels", "loss_mask"))


def test_masked_text_has_no_gradient(tiny: Tiny, engine_of: EngineOf, batches_of: Batches) -> None:
    config = tiny()
    batches = [replace(batch, loss_mask=torch.zeros_like(batch.loss_mask)) for batch in batches_of(config)]
    assert engine_of(config).train_step(batches, 64, 1e-2, 0).grad_norm == 0
