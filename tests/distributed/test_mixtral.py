"""A mixture of experts is trained as plain PyTorch trains `transformers`' Mixtral, wherever the experts lie.

Loss, gradient norm and both of the router's losses are compared; experts that were reduced over the wrong
processes, or counted twice, change the norm at the first step.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import plain
import plain_mixtral

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

RECIPE = plain.Recipe(steps=6)
FIRST_STEP = 1e-6
ALL_STEPS = 1e-4
CONTROLS = 10.0
"""How far a layout may drift, in drifts of the plain loop that sums in another order."""
LOSSES = {"without": (0.0, 0.0), "with": (0.05, 0.01)}
"""Weights of the load-balancing loss and the z-loss; the paper's would hardly show in the norm."""

SEQUENCE = {"tensor": 2, "sequence": True}
LAYOUTS: dict[int, list[dict[str, Any]]] = {
    1: [{}, {"zero_stage": 0}, {"zero_stage": 3}],
    2: [
        {"expert": 2},
        {"expert": 2, "zero_stage": 2},
        {"expert": 2, "zero_stage": 2, "offload": "optimizer"},
        {"zero_stage": 3},
        {**SEQUENCE, "expert": 2},
        {**SEQUENCE},
        {"context": 2},
        {"context": 2, "expert": 2, "zero_stage": 2},
        {"pipeline": 2, "layers_per_stage": [1, 4]},
    ],
    4: [
        {"expert": 2},
        {"expert": 4, "zero_stage": 2},
        {"expert": 2, "pipeline": 2},
        {"expert": 2, "pipeline": 2, "virtual_pipeline": 2},
        {**SEQUENCE, "expert": 2, "zero_stage": 2},
        {**SEQUENCE, "expert": 4},
        {**SEQUENCE, "context": 2, "expert": 2},
    ],
}
CASES = [
    (nproc, losses, parallel)
    for nproc, layouts in LAYOUTS.items()
    for parallel in layouts
    for losses in LOSSES
    if losses == "with" or parallel in (LAYOUTS[1][0], *LAYOUTS[2][:2], *LAYOUTS[4][:3])
]

Histories = dict[str, list[list[float]]]
LEARNED = slice(2)
"""Loss and gradient norm. The load-balancing loss counts tokens: it jumps where rounding decides a tie between experts,
which a control may meet or not."""


def case_id(case: tuple[int, str, dict[str, Any]]) -> str:
    nproc, losses, parallel = case
    words = [f"{key}-{value}".replace(" ", "") for key, value in parallel.items()]
    return "_".join([f"{nproc}-processes", f"{losses}-router-losses", *words])


def config(dataset: Path, losses: str, parallel: dict[str, Any], **training: Any) -> dict[str, Any]:
    """Our configuration of the oracle's model and recipe."""
    aux_coef, z_coef = LOSSES[losses]
    return {
        "model": {
            "vocab_size": 512,
            "hidden_size": 64,
            "num_hidden_layers": plain_mixtral.LAYERS,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "moe_intermediate_size": 96,
            "max_position_embeddings": 128,
            "num_experts": plain_mixtral.EXPERTS,
            "num_experts_per_tok": plain_mixtral.CHOSEN,
            "router_aux_loss_coef": aux_coef,
            "router_z_loss_coef": z_coef,
        },
        "parallel": parallel,
        **RECIPE.sections(dataset, **training),
    }


@pytest.fixture(scope="module")
def checkpoint(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The oracle's model as a checkpoint."""
    folder = tmp_path_factory.mktemp("mixtral") / "step-0"
    weights = plain.megatron_weights(plain_mixtral.mixtral(512), plain_mixtral.feed_forward)
    plain.write_checkpoint(weights, config(dataset, "without", {})["model"], folder)
    return str(folder)


@pytest.fixture(scope="module")
def histories(
    dataset: Path, checkpoint: str, train_layouts: Callable[[int, list[dict[str, Any]]], Histories]
) -> Histories:
    """What every layout saw: each number of processes is started once for all its cases."""
    found = {}
    for nproc in LAYOUTS:
        cases = [
            {"name": case_id(case), "config": config(dataset, case[1], case[2]), "checkpoint": checkpoint}
            for case in CASES
            if case[0] == nproc
        ]
        if nproc == 2:
            short = config(
                dataset, "with", {"expert": 2}, precision="bf16", steps=RECIPE.warmup_steps, global_batch_size=4
            )
            cases += [{"name": f"bf16-{n}", "config": short, "checkpoint": checkpoint, "repeat": n} for n in (1, 16)]
        found |= train_layouts(nproc, cases)
    return found


def train_plainly(
    dataset: Path, losses: str, micro_batch_size: int, attention: str = "sdpa"
) -> list[tuple[float, ...]]:
    """(loss, gradient norm, load-balancing loss, z-loss) of each step of the plain loop."""
    added = plain_mixtral.RouterLosses(*LOSSES[losses])
    tokens = plain.read_tokens(dataset / "train")
    history = plain.train_plainly(plain_mixtral.mixtral(512, attention), tokens, RECIPE, micro_batch_size, added)
    return [(*row, *router) for row, router in zip(history, added.of_steps(RECIPE.steps), strict=True)]


@pytest.fixture(scope="module")
def oracle(dataset: Path) -> dict[str, tuple[list[tuple[float, ...]], float]]:
    """With and without the router's losses: the plain loop's history, and its drift when it only sums in another
    order."""
    found = {}
    for losses in LOSSES:
        runs = [train_plainly(dataset, losses, size) for size in (2, 1, 8)]
        # Another micro-batch size leaves each token's own pass as it is. Attention in another order of summation does
        # not, and like ours meets other ties between experts.
        runs.append(train_plainly(dataset, losses, 2, "eager"))
        found[losses] = runs[0], max(max(differences(run, runs[0], LEARNED)) for run in runs[1:])
    return found


def differences(history: Any, reference: Any, figures: slice = slice(None)) -> list[float]:
    """The largest relative difference of the figures of a step, step by step."""
    pairs = zip((row[figures] for row in history), (row[figures] for row in reference), strict=True)
    return [max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True)) for ours, theirs in pairs]


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_equals_transformers_mixtral(case: tuple[int, str, dict[str, Any]], histories: Histories, oracle: Any) -> None:
    reference, control = oracle[case[1]]
    all_figures = differences(histories[case_id(case)], reference)
    assert all_figures[0] < FIRST_STEP
    assert max(all_figures) < ALL_STEPS
    drift = max(differences(histories[case_id(case)], reference, LEARNED))
    assert drift < CONTROLS * control, f"drifted {drift:.1e}, the control {control:.1e}"


def test_bf16_sums_the_gradients_of_experts_in_float32(histories: Histories) -> None:
    """Sixteen times the same micro-batch: only a sum that rounds differs from the one of a single one."""
    once, often = histories["bf16-1"][0], histories["bf16-16"][0]
    assert often == pytest.approx(once, rel=1e-6)


def test_the_routers_losses_are_learned_from(oracle: Any) -> None:
    """Else the cases with them would show nothing."""
    without, _ = oracle["without"]
    with_them, _ = oracle["with"]
    assert without[0][0] == pytest.approx(with_them[0][0], rel=1e-7)
    assert differences([without[0][1:2]], [with_them[0][1:2]])[0] > 100 * FIRST_STEP
