"""Adapters beside a matrix: what dropout takes from them."""

from collections.abc import Callable
from math import sqrt
from typing import Any

import torch

from bigtrain.config import Config
from bigtrain.models.lora import Adapted
from bigtrain.parallel.engine import Engine

DRAWS = 4000


def test_dropout_is_of_what_the_adapters_read_alone(
    tiny: Callable[..., Config], engine_of: Callable[[Config], Engine]
) -> None:
    chunk: Any = engine_of(tiny("finetune.lora={lora_dropout: 0.5}")).chunks[0].module
    part = chunk.decoder.layers[0].mlp.linear_fc2
    assert isinstance(part, Adapted)
    with torch.no_grad():
        part.down_proj_lora_B.normal_()
        x = torch.randn(1, 1, part.base.weight.shape[1])
        base, exact = part.base(x)[0], part.eval()(x)[0]
        drawn = part.train()(x.expand(DRAWS, -1, -1))[0]
    added, expected = drawn - base, exact - base
    spread = added.std(0)
    assert spread.min() > 0.1 * expected.abs().mean()
    assert ((added.mean(0) - expected).abs() < 6 * spread / sqrt(DRAWS)).all()
