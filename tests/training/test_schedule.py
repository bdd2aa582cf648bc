"""Learning rates at their corner points, and against transformers' schedules where the definitions meet."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import optimization

from bigtrain.config import Config
from bigtrain.training.schedule import learning_rate

NAMES = ["cosine", "linear", "constant", "wsd"]


def rates(config: Config) -> list[float]:
    """The rate of every step, the first one first."""
    return [learning_rate(config, done) for done in range(config.training.steps)]


def scheduled(tiny: Callable[..., Config], name: str, **options: Any) -> Config:
    words = [f"training.steps={options.pop('steps', 100)}", f"schedule.name={name}", "optimizer.lr=0.5"]
    if name == "wsd":
        options.setdefault("decay_steps", 20)
    return tiny(*words, *(f"schedule.{key}={value}" for key, value in options.items()))


@pytest.mark.parametrize("name", NAMES)
def test_warm_up_rises_in_even_steps_to_the_peak(name: str, tiny: Callable[..., Config]) -> None:
    found = rates(scheduled(tiny, name, warmup_steps=10))
    assert found[:10] == pytest.approx([0.05 * number for number in range(1, 11)])
    assert found[9] == max(found) == 0.5


@pytest.mark.parametrize("name", ["cosine", "linear", "wsd"])
@pytest.mark.parametrize("ratio", [0.0, 0.1, 1.0])
def test_the_last_step_has_the_least_rate(name: str, ratio: float, tiny: Callable[..., Config]) -> None:
    found = rates(scheduled(tiny, name, warmup_steps=7, min_lr_ratio=ratio))
    assert found[-1] == pytest.approx(0.5 * ratio, abs=1e-12)
    assert min(found[7:]) == found[-1]


@pytest.mark.parametrize(("name", "ratio"), [("cosine", 0.55), ("linear", 0.55), ("constant", 1.0), ("wsd", 1.0)])
def test_half_way_between_warm_up_and_end(name: str, ratio: float, tiny: Callable[..., Config]) -> None:
    assert rates(scheduled(tiny, name, warmup_steps=20))[59] == pytest.approx(0.5 * ratio)


def test_wsd_stays_at_the_peak_until_its_decay(tiny: Callable[..., Config]) -> None:
    found = rates(scheduled(tiny, "wsd", warmup_steps=10, decay_steps=4, min_lr_ratio=0.2))
    assert found[9:96] == [0.5] * 87
    assert found[96:] == pytest.approx([0.4, 0.3, 0.2, 0.1])


def test_constant_stays(tiny: Callable[..., Config]) -> None:
    assert rates(scheduled(tiny, "constant")) == [0.5] * 100


@pytest.mark.parametrize("name", NAMES)
def test_runs_of_a_single_step_and_of_warm_up_alone(name: str, tiny: Callable[..., Config]) -> None:
    assert 0 < learning_rate(scheduled(tiny, name, steps=1, decay_steps=int(name == "wsd")), 0) <= 0.5
    all_warm_up = scheduled(tiny, name, steps=5, warmup_steps=5, decay_steps=0)
    assert rates(all_warm_up) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])


@given(warmup=st.integers(0, 20), rest=st.integers(1, 30), data=st.data())
def test_equals_transformers(warmup: int, rest: int, data: st.DataObject, tiny: Callable[..., Config]) -> None:
    """Theirs gives step number n, counted from 0, what ours gives number n + 1: ours spends no step at rate 0."""
    steps = warmup + rest
    ratio = data.draw(st.sampled_from([0.0, 0.1, 0.5]))
    decay = data.draw(st.integers(1, rest))
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    theirs = {
        "cosine": optimization.get_cosine_with_min_lr_schedule_with_warmup(optimizer, warmup, steps, min_lr_rate=ratio),
        "linear": optimization.get_linear_schedule_with_warmup(optimizer, warmup, steps),
        "constant": optimization.get_constant_schedule_with_warmup(optimizer, warmup),
        "wsd": optimization.get_wsd_schedule(
            optimizer, warmup, decay, num_training_steps=steps, decay_type="linear", min_lr_ratio=ratio
        ),
    }
    least = {"cosine": ratio, "linear": 0.0, "constant": 0.0, "wsd": ratio}
    for name, peer in theirs.items():
        config = scheduled(
            tiny,
            name,
            steps=steps,
            warmup_steps=warmup,
            min_lr_ratio=least[name],
            decay_steps=decay if name == "wsd" else 0,
        )
        # Theirs starts a WSD's warm-up at the least rate, ours at 0.
        begin = warmup if name == "wsd" else 0
        expected = [0.5 * peer.lr_lambdas[0](number) for number in range(1, steps + 1)]
        assert rates(config)[begin:] == pytest.approx(expected[begin:], abs=1e-12), name
