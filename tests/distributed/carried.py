"""Models of `transformers`: taken in, trained in some layout and brought back, beside what plain PyTorch makes."""

from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import PreTrainedModel

from bigtrain.convert.from_hf import convert_from_hf
from bigtrain.convert.to_hf import convert_to_hf

MOVED = 1e-3
"""How far a weight may lie from where plain PyTorch has it, as a part of the way that it went there. Adam divides by
the size of the gradient, and so makes a small one's rounding large."""


def taken_in(model: PreTrainedModel, folder: Path) -> Path:
    """The checkpoint that `convert from-hf` makes of the model, and proves."""
    model.save_pretrained(folder / "there")
    taken = convert_from_hf(folder / "there", folder / "here")
    assert taken.parity is not None
    assert taken.parity.float32.largest_difference < 1e-5
    return folder / "here" / "checkpoints" / "step-00000000"


def weights_of(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """A copy of those that are trained."""
    return {name: tensor.detach().clone() for name, tensor in model.named_parameters() if tensor.requires_grad}


def assert_came_back(
    checkpoint: Path, tokenizer: Path, output: Path, model: PreTrainedModel, before: Mapping[str, torch.Tensor]
) -> None:
    """The checkpoint, exported and loaded by `transformers`, is the model that plain PyTorch has trained."""
    convert_to_hf(checkpoint, output, tokenizer=tokenizer)
    loaded = type(model).from_pretrained(output)
    found = weights_of(loaded)
    assert found.keys() == before.keys()
    for name, tensor in weights_of(model).items():
        if name.endswith("key.bias"):  # its gradient is zero, of which Adam makes a step of rounding
            continue
        way = (tensor - before[name]).norm()
        assert way > 0, f"{name} was not trained"
        assert (found[name] - tensor).norm() < MOVED * way, name
