"""What may be drawn, against the processors of `transformers`, and how often it is, against the probabilities."""

import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from bigtrain.evaluate.sampling import Sampler, Sampling, among


@pytest.mark.parametrize("top_k", [0, 1, 7, 50, 60])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.3, 1e-6])
def test_what_may_be_drawn_is_what_transformers_keeps(top_k: int, top_p: float) -> None:
    torch.manual_seed(0)
    scores = (3 * torch.randn(20, 50)).round(decimals=1).double()  # with ties
    expected = scores
    if top_k:
        expected = TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(None, expected)
    found = among(scores, top_k, top_p)
    assert torch.equal(found.isinf().sum(-1), expected.isinf().sum(-1))  # of tokens that tie either may stay
    assert torch.equal(found.sort().values, expected.sort().values)


def test_tokens_come_as_often_as_they_are_likely() -> None:
    torch.manual_seed(0)
    logits = torch.randn(8)
    how = Sampling(temperature=0.7, top_k=5, seed=3)
    likely = TopKLogitsWarper(5)(None, TemperatureLogitsWarper(0.7)(None, logits[None]))[0].softmax(-1)
    draws = 20_000
    drawn = Sampler(how, range(draws))(logits.expand(draws, -1))
    found = drawn.bincount(minlength=8) / draws
    assert not found[likely == 0].any()
    deviation = (likely * (1 - likely) / draws).sqrt()
    assert ((found - likely).abs() <= 4 * deviation).all()


def test_a_row_draws_as_if_alone() -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 1000)
    how = Sampling(temperature=1.0, seed=11)
    together, alone = Sampler(how, range(4)), [Sampler(how, [number]) for number in range(4)]
    for _ in range(5):
        assert together(logits).tolist() == [int(one(row[None])) for one, row in zip(alone, logits, strict=True)]
