"""T5 beside `transformers`' own, in what the comparison of training runs cannot see: dropout, and what is not seen."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import T5Config, T5ForConditionalGeneration

from bigtrain.config import Config
from bigtrain.data.pair_batches import PairBatch
from bigtrain.parallel.engine import Engine

Tiny = Callable[..., Config]
EngineOf = Callable[[Config], Engine]

B, S, T = 2, 16, 8
WORDS = ["model.architecture=t5", "model.num_key_value_heads=null", "model.position_embedding=relative"]


class Dropouts(TorchFunctionMode):
    """Notes the size and the probability of all that is dropped out."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[tuple[int, float]] = Counter()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is F.dropout:
            p, training = [*args[1:], *(kwargs.get(name) for name in ("p", "training")[len(args) - 1 :])][:2]
            if training in (True, None) and p:
                self.seen[args[0].numel(), p] += 1
        elif function is F.scaled_dot_product_attention and kwargs["dropout_p"]:
            query, key = args[:2]
            self.seen[query[..., 0].numel() * key.shape[2], kwargs["dropout_p"]] += 1
        return function(*args, **kwargs)


def a_batch() -> PairBatch:
    ids = torch.randint(3, 512, (B, S + T + 1), generator=torch.Generator().manual_seed(1))
    targets = ids[:, S:]
    return PairBatch(ids[:, :S], targets[:, 1:], torch.ones(B, T), targets[:, :-1])


@pytest.mark.parametrize("gated", [False, True])
def test_all_that_transformers_drops_is_dropped(gated: bool, tiny: Tiny, engine_of: EngineOf) -> None:
    """In training as many values of each kind, and none when it is over."""
    act = "model.hidden_act=gelu_new" if gated else "model.hidden_act=relu"
    words = [*WORDS, act, f"model.gated_mlp={str(gated).lower()}", "model.num_decoder_layers=3"]
    config = tiny(*words, "model.hidden_dropout=0.25", "model.attention_dropout=0.25")
    ours, batch = engine_of(config).chunks[0].module, a_batch()
    theirs = T5ForConditionalGeneration(
        T5Config(
            vocab_size=512,
            d_model=32,
            d_kv=8,
            d_ff=48,
            num_layers=2,
            num_decoder_layers=3,
            num_heads=4,
            dropout_rate=0.25,
            feed_forward_proj="gated-gelu" if gated else "relu",
            use_cache=False,
        )
    )
    with Dropouts() as found:
        ours.train().losses(batch)
    with Dropouts() as expected:
        theirs.train()(input_ids=batch.input_ids, decoder_input_ids=batch.decoder_input_ids)
    assert found.seen == expected.seen
    assert found.seen.total() == (2 + 2 * 4) + (2 + 3 * 6)  # in each stack two, and in each of its layers
    with Dropouts() as found:
        ours.eval().losses(batch)
    assert not found.seen


def losses(engine: Engine, batch: PairBatch) -> Tensor:
    with torch.no_grad():
        return engine.chunks[0].module.eval().losses(batch)


def test_padding_and_what_is_still_to_be_said_are_not_seen(tiny: Tiny, engine_of: EngineOf) -> None:
    engine, batch = engine_of(tiny(*WORDS)), a_batch()
    seen = torch.ones(B, S, dtype=torch.bool)
    seen[1, 9:] = False
    padded = PairBatch(batch.input_ids, batch.labels, batch.loss_mask, batch.decoder_input_ids, seen)
    changed_inputs, changed_targets = batch.input_ids.clone(), batch.decoder_input_ids.clone()
    changed_inputs[1, 9:] += 1
    changed_targets[:, 5:] += 1
    before = losses(engine, padded)
    other_padding = PairBatch(changed_inputs, batch.labels, batch.loss_mask, batch.decoder_input_ids, seen)
    torch.testing.assert_close(losses(engine, other_padding), before, rtol=0, atol=0)
    later = losses(engine, PairBatch(batch.input_ids, batch.labels, batch.loss_mask, changed_targets, seen))
    torch.testing.assert_close(later[:, :5], before[:, :5], rtol=0, atol=0)
    assert not torch.isclose(later[:, 5:], before[:, 5:], rtol=1e-6).any()
    assert not torch.isclose(losses(engine, batch)[1], before[1], rtol=1e-6).any()
