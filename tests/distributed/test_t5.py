"""A T5 is trained as plain PyTorch trains `transformers`' T5, wherever its layers lie.

Encoder and decoder are of unequal depth, so that a stage holds layers of both, and tables of relative positions lie on
several stages: one whose gradient was not added up, or counted twice, changes the norm at the first step.
"""

import functools
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from plain import differences

from bigtrain.config import parse_config
from bigtrain.prepare.prepare import prepare
from bigtrain.prepare.text import read_documents
from bigtrain.prepare.train_tokenizer import train_sentencepiece
from bigtrain.training.batches import batch_source
from bigtrain.training.inputs import open_inputs

sys.path.insert(0, str(Path(__file__).parent))
import carried
import plain
import plain_t5

pytestmark = pytest.mark.distributed

RECIPE = plain.Recipe(steps=6, sequence_length=48)
FIRST_STEP = 1e-6
ALL_STEPS = 1e-4
CONTROLS = 10.0
"""How far a layout may drift, in drifts of the plain loop that sums in another order."""
OBJECTIVES = {"v1.0": "ul2", "v1.1": "span_corruption"}
"""The former pads inputs and targets; the latter fills the inputs."""
VOCABULARY = 512
SPECIAL = ["<pad>", *(f"<extra_id_{n}>" for n in range(20)), "[R]", "[S]", "[X]"]

SEQUENCE = {"tensor": 2, "sequence": True}
INTERLEAVED = {"pipeline": 2, "virtual_pipeline": 2}
BOTH = ("v1.0", "v1.1")
LAYOUTS: dict[int, list[tuple[dict[str, Any], str, tuple[str, ...]]]] = {  # layout, recompute, versions
    1: [
        ({}, "none", BOTH),
        ({}, "selective", BOTH),
        ({"zero_stage": 3}, "full", BOTH),
    ],
    2: [
        ({"tensor": 2}, "none", ("v1.0",)),
        (SEQUENCE, "full", ("v1.1",)),
        ({"pipeline": 2}, "none", ("v1.0",)),
        ({"pipeline": 2, "layers_per_stage": [4, 1], "zero_stage": 3}, "full", ("v1.0",)),  # the decoder on both
        ({"pipeline": 2, "layers_per_stage": [1, 5], "zero_stage": 2}, "selective", ("v1.1",)),  # the encoder on both
        (INTERLEAVED, "none", ("v1.0",)),
        *(({"zero_stage": stage}, "none", ("v1.0",)) for stage in (0, 1, 2, 3)),
    ],
    4: [
        ({**SEQUENCE, "pipeline": 2}, "none", BOTH),
        ({**INTERLEAVED, "zero_stage": 3}, "full", ("v1.1",)),
    ],
}
CASES = [
    (nproc, version, parallel, recompute)
    for nproc, layouts in LAYOUTS.items()
    for parallel, recompute, versions in layouts
    for version in versions
]
CARRIED = [(1, {}), (4, {**SEQUENCE, "pipeline": 2})]
"""Where models of `transformers` are trained that were taken in, and brought back."""
SHORT = replace(RECIPE, steps=3, warmup_steps=1)
Case = tuple[int, str, dict[str, Any], str]
Histories = dict[str, list[list[float]]]


def case_id(case: Case) -> str:
    nproc, version, parallel, recompute = case
    words = [f"{key}-{value}".replace(" ", "") for key, value in parallel.items()]
    return "_".join([f"{nproc}-processes", version, *words, *([recompute] if recompute != "none" else [])])


def config(
    dataset: Path, version: str, parallel: dict[str, Any], recipe: plain.Recipe = RECIPE, **training: Any
) -> dict[str, Any]:
    """Our configuration of the oracle's model and recipe."""
    layers, decoder_layers = plain_t5.SHAPES[version]
    old = version == "v1.0"
    sections = recipe.sections(dataset, **training)
    sections["data"] |= {"objective": OBJECTIVES[version]}
    return {
        "model": {
            "architecture": "t5",
            "vocab_size": VOCABULARY,
            "hidden_size": 64,
            "num_hidden_layers": layers,
            "num_decoder_layers": decoder_layers,
            "num_attention_heads": plain_t5.HEADS,
            "head_dim": plain_t5.HEAD_SIZE,
            "intermediate_size": 96,
            "position_embedding": "relative",
            "relative_attention_num_buckets": 8,
            "relative_attention_max_distance": 20,
            "norm_eps": 1e-6,
            "hidden_act": "relu" if old else "gelu_new",
            "gated_mlp": not old,
            "tie_word_embeddings": old,
        },
        "parallel": parallel,
        **sections,
    }


@pytest.fixture(scope="module")
def pairs(corpus: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Datasets `train` and `validation` of a tokenizer with sentinels."""
    folder = tmp_path_factory.mktemp("pairs")
    texts = read_documents(corpus, pattern="*.py", max_bytes=300_000)
    tokenizer = train_sentencepiece(texts, folder / "t5.model", VOCABULARY, special_tokens=SPECIAL)
    prepare(corpus, folder / "data", tokenizer, pattern="*.py", validation_fraction=0.1, workers=1)
    return folder / "data"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("t5")


@pytest.fixture(scope="module")
def histories(
    pairs: Path, folder: Path, train_layouts: Callable[[int, list[dict[str, Any]]], Histories]
) -> Callable[[int], Histories]:
    """What every layout of a number of processes saw; that is started once for all its cases."""
    came_in = {v: carried.taken_in(plain_t5.t5(VOCABULARY, v), folder / f"carried-{v}") for v in BOTH}
    for version in BOTH:
        weights = plain_t5.megatron_weights(plain_t5.t5(VOCABULARY, version))
        plain.write_checkpoint(weights, config(pairs, version, {})["model"], folder / version)

    @functools.cache
    def of(nproc: int) -> Histories:
        cases: list[dict[str, Any]] = [
            {
                "name": case_id(case),
                "config": config(pairs, case[1], case[2], recompute=case[3]),
                "checkpoint": str(folder / case[1]),
            }
            for case in CASES
            if case[0] == nproc
        ]
        cases += [
            {
                "name": f"carried-{version}",
                "config": config(pairs, version, parallel, SHORT),
                "weights": str(came_in[version]),
                "save": str(folder / f"carried-{version}" / f"{nproc}-processes"),
            }
            for count, parallel in CARRIED
            for version in BOTH
            if count == nproc
        ]
        fresh = [{}] if nproc == 1 else [SEQUENCE, INTERLEAVED]
        cases += [{"name": f"fresh-{i}", "config": config(pairs, "v1.0", p), "last": 1} for i, p in enumerate(fresh)]
        if nproc == 2:
            half = RECIPE.steps // 2
            begun, goes_on = config(pairs, "v1.0", SEQUENCE), config(pairs, "v1.0", INTERLEAVED)
            cases += [
                {
                    "name": "begun",
                    "config": begun,
                    "checkpoint": str(folder / "v1.0"),
                    "last": half,
                    "save": str(folder / "half"),
                },
                {"name": "goes-on", "config": goes_on, "checkpoint": str(folder / "half" / f"step-{half:08}")},
            ]
        return train_layouts(nproc, cases)

    return of


@functools.cache
def steps_of(dataset: Path, version: str) -> list[plain_t5.Pair]:
    """The global batches, as the run makes them; that these are right, `tests/data/test_pairs.py` says."""
    parsed = parse_config(config(dataset, version, {}))
    source = batch_source(open_inputs(parsed).reads, "contiguous")
    size, found = RECIPE.global_batch_size, []
    for step in range(RECIPE.steps):
        (batch,) = source.batches(np.arange(step * size, (step + 1) * size), size)
        seen = torch.ones_like(batch.input_ids) if batch.attention_mask is None else batch.attention_mask
        ids = batch.input_ids.long(), seen.long(), batch.decoder_input_ids.long(), batch.labels.long()
        found.append(plain_t5.Pair(*ids, batch.loss_mask))
    return found


@pytest.fixture(scope="module")
def oracle(pairs: Path) -> dict[str, tuple[list[tuple[float, float]], float]]:
    """Per version: the plain loop's history, and its drift when it only sums in another order."""
    found = {}
    for version in BOTH:
        steps = steps_of(pairs, version)
        runs = [plain_t5.train_plainly(plain_t5.t5(VOCABULARY, version), steps, RECIPE, size) for size in (2, 1, 8)]
        found[version] = runs[0], max(max(differences(run, runs[0])) for run in runs[1:])
    return found


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=case_id(case), marks=[pytest.mark.slow] * (case[0] == 4)) for case in CASES]
)
def test_equals_transformers_t5(case: Case, histories: Callable[[int], Histories], oracle: Any) -> None:
    reference, control = oracle[case[1]]
    drift = differences(histories(case[0])[case_id(case)], reference)
    assert drift[0] < FIRST_STEP
    assert max(drift) < ALL_STEPS
    assert max(drift) < CONTROLS * control, f"drifted {max(drift):.1e}, the control {control:.1e}"


@pytest.mark.parametrize("version", BOTH)
@pytest.mark.parametrize("nproc", [pytest.param(n, marks=[pytest.mark.slow] * (n == 4)) for n, _ in CARRIED])
def test_from_transformers_and_back(
    nproc: int, version: str, histories: Callable[[int], Histories], pairs: Path, folder: Path
) -> None:
    history = histories(nproc)[f"carried-{version}"]
    model = plain_t5.t5(VOCABULARY, version)
    before = carried.weights_of(model)
    reference = plain_t5.train_plainly(model, steps_of(pairs, version), SHORT, 2)
    assert max(differences(history, reference)) < 10 * FIRST_STEP
    there = folder / f"carried-{version}"
    checkpoint = there / f"{nproc}-processes" / f"step-{SHORT.steps:08}"
    tokenizer = pairs.parent / "t5.model"
    carried.assert_came_back(checkpoint, tokenizer, there / f"out-{nproc}", model, before)


def test_a_checkpoint_goes_on_in_another_layout(histories: Callable[[int], Histories], oracle: Any) -> None:
    """Saved by two processes that share each layer, read by two that take turns with the layers."""
    reference, control = oracle["v1.0"]
    of_two = histories(2)
    drift = differences([*of_two["begun"], *of_two["goes-on"]], reference)
    assert max(drift) < CONTROLS * control


def test_initial_weights_do_not_depend_on_the_layout(histories: Callable[[int], Histories]) -> None:
    (one,) = histories(1)["fresh-0"]
    for name in ("fresh-0", "fresh-1"):
        assert histories(2)[name][0] == pytest.approx(one, rel=FIRST_STEP)


def test_the_batches_have_padding(pairs: Path) -> None:
    """Else the cases of v1.0 would show nothing of it."""
    for step in steps_of(pairs, "v1.0"):
        assert 0.1 < step.attention_mask.float().mean() < 0.9
        assert 0.1 < step.loss_mask.mean() < 0.9
    assert all(step.attention_mask.all() for step in steps_of(pairs, "v1.1"))
