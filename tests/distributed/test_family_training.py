"""Each family is trained as plain PyTorch trains the model of `transformers`: loss, gradient norm and weights.

Norms that processes of the tensor group share, and those whose statistics they take together, are trained with
sequence parallelism and without; windows, caps and rotary tables wherever they could get into the wrong layer.
"""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from families import FAMILIES, weights

sys.path.insert(0, str(Path(__file__).parent))
import plain

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

RECIPE = plain.Recipe(steps=3, warmup_steps=1)
ROUNDING = 2e-6
"""Relative difference of loss and gradient norm; the first step's is below 1e-6."""
MOVED = 1e-3
"""How far a weight may lie from where plain PyTorch has it, as a part of the way that it went there. Adam divides by
the size of the gradient, and so makes a small one's rounding large."""

CUT = {"tensor": 2, "pipeline": 2}
NAMES = [name for name in FAMILIES if name not in ("llama-linear", "llama-yarn")]
"""What is left out differs from Llama 3.1 and Phi-3 in numbers alone."""
LAYOUTS: dict[int, dict[str, list[dict[str, Any]]]] = {
    1: {name: [{}] for name in NAMES},
    2: {
        "gpt-neox": [{"zero_stage": 3}],
        "mistral": [{"context": 2, "zero_stage": 2}],
        "gemma-2": [{"context": 2}, {"zero_stage": 0}],
        "gemma-3": [{"pipeline": 2, "virtual_pipeline": 2}, {"recompute": "full", "zero_stage": 3}],
        "olmo-2": [{"tensor": 2, "zero_stage": 0}, {"recompute": "full", "tensor": 2, "sequence": True}],
        "qwen3-moe": [{"expert": 2}],
    },
    4: {
        **{name: [{**CUT, "sequence": True}] for name in NAMES},
        **{name: [{**CUT, "sequence": True}, CUT] for name in ("qwen3", "gemma-3", "olmo-2")},
        "gpt-neox": [CUT],
        "mistral": [CUT],
    },
}
CASES = [
    (nproc, name, layout)
    for nproc, families in LAYOUTS.items()
    for name, layouts in families.items()
    for layout in layouts
]

Histories = dict[str, list[list[float]]]
Trained = tuple[list[tuple[float, float]], dict[str, torch.Tensor], dict[str, torch.Tensor]]


def case_id(case: tuple[int, str, dict[str, Any]]) -> str:
    nproc, name, layout = case
    return "_".join([f"{nproc}-processes", name, *(f"{key}-{value}" for key, value in layout.items())])


def config(dataset: Path, name: str, layout: dict[str, Any]) -> dict[str, Any]:
    """Our configuration of a family and the recipe."""
    training = {key: value for key, value in layout.items() if key == "recompute"}
    parallel = {key: value for key, value in layout.items() if key not in training}
    return {"model": FAMILIES[name].section, "parallel": parallel, **RECIPE.sections(dataset, **training)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


@pytest.fixture(scope="module")
def histories(
    dataset: Path, folder: Path, train_layouts: Callable[[int, list[dict[str, Any]]], Histories]
) -> Callable[[int], Histories]:
    """What every case of a number of processes saw; that is started once for all of them."""
    for name in NAMES:
        family = FAMILIES[name]
        plain.write_checkpoint(weights(family.build(), family.section), family.section, folder / name)

    @functools.cache
    def of(nproc: int) -> Histories:
        cases = [
            {
                "name": case_id(case),
                "config": config(dataset, *case[1:]),
                "checkpoint": str(folder / case[1]),
                "save": str(folder / case_id(case)),
            }
            for case in CASES
            if case[0] == nproc
        ]
        return train_layouts(nproc, cases)

    return of


@pytest.fixture(scope="module")
def plainly(dataset: Path) -> Callable[[str], Trained]:
    """The plain loop's history of a family, and its weights before and after."""
    tokens = plain.read_tokens(dataset / "train")

    @functools.cache
    def of(name: str) -> Trained:
        family = FAMILIES[name]
        model = family.build()
        before = {key: tensor.clone() for key, tensor in weights(model, family.section).items()}
        return plain.train_plainly(model, tokens, RECIPE, 2), before, weights(model, family.section)

    return of


def saved(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of the checkpoint in a folder, read with plain `torch.distributed.checkpoint`."""
    (path,) = folder.glob("step-*")
    stored = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
    tensors = {name: torch.empty(entry.size) for name, entry in stored.items() if name.startswith("model.")}
    dcp.load(tensors, checkpoint_id=path, no_dist=True)
    return {name.removeprefix("model."): tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize("case", [pytest.param(case, id=case_id(case)) for case in CASES])
def test_equals_plain_pytorch(
    case: tuple[int, str, dict[str, Any]],
    histories: Callable[[int], Histories],
    plainly: Callable[[str], Trained],
    folder: Path,
) -> None:
    reference, before, after = plainly(case[1])
    history = histories(case[0])[case_id(case)]
    drift = [
        max(abs(a - b) / b for a, b in zip(ours, theirs, strict=False))
        for ours, theirs in zip(history, reference, strict=True)
    ]
    assert drift[0] < 1e-6
    assert max(drift) < ROUNDING
    found = saved(folder / case_id(case))
    assert found.keys() == after.keys()
    for key, tensor in after.items():
        if key.endswith("linear_qkv.bias"):  # a key's bias has a gradient of zero, which Adam makes a step of
            continue
        way = (tensor - before[key]).norm()
        assert way > 0, f"{key} was not trained"
        assert (found[key] - tensor).norm() < MOVED * way, key
