"""Every family is `transformers`' own: the same weights give the same logits, and each feature is seen in them."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from families import FAMILIES, Family, weights
from torch import Tensor, nn

from bigtrain.config import Config, parse_config, validate
from bigtrain.models.gpt import GPT, build_gpt
from bigtrain.models.size import parameter_count
from bigtrain.parallel.topology import Layout

LENGTH = 64
TOKENS = torch.randint(512, (2, LENGTH), generator=torch.Generator().manual_seed(1))


def config_of(section: dict[str, Any]) -> Config:
    training = {"output_dir": "-", "steps": 1, "global_batch_size": 1, "sequence_length": LENGTH, "precision": "fp32"}
    config = parse_config({"model": section, "data": {"train": "-"}, "training": training})
    validate(config, 1)
    return config


def fill(gpt: GPT, given: dict[str, Tensor]) -> GPT:
    """Copy weights of global names into a model, all of them, and each of its parameters once."""
    used = set()
    with torch.no_grad():
        for name, parameter in gpt.named_parameters():
            numbers = [int(number) for number in re.findall(r"\.(\d+)\.", name)]  # of the layer, and of the expert
            key = re.sub(r"layers\.\d+\.", "layers.", re.sub(r"local_experts\.\d+\.", "experts.", name))
            value = given[key]
            for number in numbers:
                value = value[number]
            assert parameter.shape == value.shape, name
            parameter.copy_(value)
            used.add(key)
    assert used == given.keys()
    return gpt.eval()


def logits(model: nn.Module, *more: Any) -> Tensor:
    with torch.no_grad():
        out = model(TOKENS, *more)
    return out if isinstance(out, Tensor) else out.logits


@pytest.fixture
def ours(world: Layout) -> Callable[[dict[str, Any], dict[str, Tensor]], Tensor]:
    """The logits of our model of a section, filled with weights."""

    def of(section: dict[str, Any], given: dict[str, Tensor]) -> Tensor:
        return logits(fill(build_gpt(config_of(section))[0], given), torch.arange(LENGTH).expand(2, -1), None)

    return of


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_those_of_transformers(name: str, ours: Callable[..., Tensor]) -> None:
    family: Family = FAMILIES[name]
    peer = family.build().eval()
    given = weights(peer, family.section)
    reference = logits(peer)
    assert reference.std() > 0.5, "logits that say something"
    torch.testing.assert_close(ours(family.section, given), reference, rtol=0, atol=1e-5)
    for key, off in family.controls.items():
        missed = ours({**family.section, key: off}, given) - reference
        assert missed.abs().max() > 1e-4, f"{key} is not seen in the logits"


@pytest.mark.parametrize("name", FAMILIES)
def test_parameters_are_counted(name: str, world: Layout) -> None:
    config = config_of(FAMILIES[name].section)
    count = sum(p.numel() for p in build_gpt(config)[0].parameters())
    assert count == parameter_count(config.model) == sum(p.numel() for p in FAMILIES[name].build().parameters())
