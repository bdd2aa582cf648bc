"""BigTrain trains what plain PyTorch trains on the `transformers` model, in every layout."""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from plain import differences

sys.path.insert(0, str(Path(__file__).parent))
import plain

pytestmark = pytest.mark.distributed

RECIPE = plain.Recipe()
SHORT = 8
"""Steps of eight processes, which two cores take long for."""
FIRST_STEP = 1e-6
ALL_STEPS = 1e-4
CONTROLS = 10.0
"""How far a layout may drift, in drifts of the plain loop that sums in another order."""

LAYOUTS: dict[int, list[dict[str, Any]]] = {
    1: [{}, {"zero_stage": 0}, {"zero_stage": 3}],
    2: [
        {"tensor": 2, "sequence": True},
        {"tensor": 2, "sequence": False},
        {"pipeline": 2},
        {"pipeline": 2, "virtual_pipeline": 2},
        {"pipeline": 2, "layers_per_stage": [3, 1]},
        {"pipeline": 2, "zero_stage": 3},
        *({"zero_stage": stage} for stage in (0, 1, 2, 3)),
        {"zero_stage": 2, "offload": "optimizer"},
        {"zero_stage": 3, "offload": "optimizer"},
        {"context": 2},
        {"context": 2, "zero_stage": 3},
        {"context": 2, "zero_stage": 0},
    ],
    8: [
        {"tensor": 2, "pipeline": 2, "sequence": True},
        {"tensor": 2, "pipeline": 2, "zero_stage": 3},
        {"context": 2, "tensor": 2, "sequence": True},
        {"context": 4, "tensor": 2},  # two key/value heads a process: a ring
        {"context": 2, "pipeline": 2, "virtual_pipeline": 2, "zero_stage": 2},
    ],
}
UNTIED = [{}, LAYOUTS[2][0], LAYOUTS[2][2], {"context": 2}, LAYOUTS[8][0]]
"""Where tying changes the road of a gradient, the model is trained with an output layer of its own, too."""

CASES = [
    (nproc, tied, parallel)
    for nproc, layouts in LAYOUTS.items()
    for parallel in layouts
    for tied in ((True, False) if parallel in UNTIED else (True,))
]


def case_id(case: tuple[int, bool, dict[str, Any]]) -> str:
    nproc, tied, parallel = case
    words = [f"{key}-{value}".replace(" ", "") for key, value in parallel.items()]
    return "_".join([f"{nproc}-processes", "tied" if tied else "untied", *words])


Histories = dict[str, list[list[float]]]


def config(dataset: Path, tied: bool, vocab_size: int, parallel: dict[str, Any]) -> dict[str, Any]:
    """Our configuration of the oracle's model and recipe."""
    return {
        "model": {
            "vocab_size": vocab_size,
            "hidden_size": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "intermediate_size": 128,
            "max_position_embeddings": 128,
            "tie_word_embeddings": tied,
        },
        "parallel": parallel,
        **RECIPE.sections(dataset),
    }


@pytest.fixture(scope="module")
def histories(
    dataset: Path,
    tmp_path_factory: pytest.TempPathFactory,
    train_layouts: Callable[[int, list[dict[str, Any]]], Histories],
) -> Callable[[int], Histories]:
    """What every layout of a number of processes saw; that is started once for all its cases."""
    folder = tmp_path_factory.mktemp("oracle")
    for tied in (True, False):
        model = plain.llama(512, tied)
        weights = plain.megatron_weights(model)
        plain.write_checkpoint(weights, config(dataset, tied, 512, {})["model"], folder / f"tied-{tied}")

    @functools.cache
    def of(nproc: int) -> Histories:
        cases = [
            {
                "name": case_id(case),
                "config": config(dataset, tied, 512, parallel),
                "checkpoint": str(folder / f"tied-{tied}"),
                "last": RECIPE.steps if nproc < 8 else SHORT,
            }
            for case in CASES
            for count, tied, parallel in [case]
            if count == nproc
        ]
        return train_layouts(nproc, cases)

    return of


@pytest.fixture(scope="module")
def oracle(dataset: Path) -> dict[bool, tuple[list[tuple[float, float]], float]]:
    """Per tied or not: the plain loop's history, and its drift when it only sums in another order."""
    tokens = plain.read_tokens(dataset / "train")
    found = {}
    for tied in (True, False):
        runs = [plain.train_plainly(plain.llama(512, tied), tokens, RECIPE, size) for size in (2, 1, 8)]
        found[tied] = runs[0], max(max(differences(run, runs[0])) for run in runs[1:])
    return found


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=case_id(case), marks=[pytest.mark.slow] * (case[0] == 8)) for case in CASES]
)
def test_equals_plain_pytorch(
    case: tuple[int, bool, dict[str, Any]], histories: Callable[[int], Histories], oracle: Any
) -> None:
    reference, control = oracle[case[1]]
    history = histories(case[0])[case_id(case)]
    drift = differences(history, reference[: len(history)])
    assert drift[0] < FIRST_STEP
    assert max(drift) < ALL_STEPS
    assert max(drift) < CONTROLS * control, f"drifted {max(drift):.1e}, the control {control:.1e}"


def test_the_oracle_notices_a_wrong_gradient(oracle: Any, dataset: Path) -> None:
    """One norm of nine with a gradient a tenth too small, under the right loss, is caught at the first step."""
    tokens = plain.read_tokens(dataset / "train")
    model = plain.llama(512, True)
    model.model.layers[0].input_layernorm.weight.register_hook(lambda gradient: gradient * 0.9)
    wrong = plain.train_plainly(model, tokens, RECIPE, 2)
    reference, _ = oracle[True]
    assert wrong[0][0] == reference[0][0]
    assert differences(wrong, reference)[0] > FIRST_STEP
