"""BigTrain trains what plain PyTorch trains on `BertForMaskedLM` and `BertForPreTraining`, in every layout."""

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from plain import differences
from transformers import PreTrainedModel

sys.path.insert(0, str(Path(__file__).parent))
import carried
import plain
import plain_bert

from bigtrain.config import parse_config
from bigtrain.data.masked import MaskedSamples
from bigtrain.prepare.prepare import prepare
from bigtrain.prepare.text import read_documents
from bigtrain.prepare.train_tokenizer import train_wordpiece
from bigtrain.training.inputs import open_inputs

pytestmark = pytest.mark.distributed

RECIPE = plain.Recipe(steps=10)
FIRST_STEP = 1e-6
ALL_STEPS = 1e-4
CONTROLS = 10.0
"""How far a layout may drift, in drifts of the plain loop that sums in another order."""
VOCABULARY = 512

LAYOUTS: dict[int, list[dict[str, Any]]] = {
    1: [{}, {"zero_stage": 3}],
    2: [
        {"tensor": 2, "sequence": True},
        {"tensor": 2, "sequence": False},
        {"pipeline": 2},
        {"pipeline": 2, "virtual_pipeline": 2, "zero_stage": 3},
        *({"zero_stage": stage} for stage in (0, 1, 2, 3)),
    ],
    4: [{"tensor": 2, "pipeline": 2, "sequence": True}, {"tensor": 2, "zero_stage": 3}],
}
WITH_SENTENCES = [{}, LAYOUTS[2][0], LAYOUTS[2][1], LAYOUTS[2][2], {"zero_stage": 3}, LAYOUTS[4][0]]
"""Where the sentence objective is learned from too; there the samples are padded."""

CASES = [
    (nproc, sentences, parallel)
    for nproc, layouts in LAYOUTS.items()
    for parallel in layouts
    for sentences in ((False, True) if parallel in WITH_SENTENCES else (False,))
]
Case = tuple[int, bool, dict[str, Any]]
CARRIED = [(1, {}), (4, LAYOUTS[4][0])]
"""Where models of `transformers` are trained that were taken in, and brought back: a BERT that learns from sentences
too, a RoBERTa, and a RoFormer."""
MODELS = ("bert", "roberta", "roformer")
SHORT = 3
Histories = dict[str, list[list[float]]]


def case_id(case: Case) -> str:
    nproc, sentences, parallel = case
    words = [f"{key}-{value}" for key, value in parallel.items()]
    return "_".join([f"{nproc}-processes", "sentences" if sentences else "tokens", *words])


@pytest.fixture(scope="module")
def paragraphs(corpus: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of short documents, with a WordPiece tokenizer."""
    folder = tmp_path_factory.mktemp("paragraphs")
    texts = [part for text in read_documents(corpus, pattern="*.py", max_bytes=300_000) for part in text.split("\n\n")]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts if text.strip()))
    tokenizer = train_wordpiece(texts, folder / "tokenizer", VOCABULARY)
    prepare([folder / "text.jsonl"], folder / "data", tokenizer, workers=1)
    return folder / "data"


def config(dataset: Path, sentences: bool, parallel: dict[str, Any]) -> dict[str, Any]:
    """Our configuration of the oracle's model and recipe."""
    sections = RECIPE.sections(dataset)
    objective = {"sentence_objective": "next", "packing": "padded"} if sentences else {"whole_word_masking": True}
    return {
        "model": {
            "architecture": "bert",
            "vocab_size": VOCABULARY,
            "hidden_size": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 8,
            "intermediate_size": 128,
            "max_position_embeddings": 64,
            "position_embedding": "learned",
            "normalization": "layernorm",
            "norm_eps": 1e-12,
            "hidden_act": "gelu",
            "gated_mlp": False,
            "linear_bias": True,
            "tie_word_embeddings": True,
            "add_pooling_layer": sentences,
        },
        "parallel": parallel,
        **sections,
        "data": {**sections["data"], **objective},
    }


def global_batches(dataset: Path, sentences: bool) -> list[plain_bert.Step]:
    """The batches of all steps, in the words of `transformers`."""
    reads = open_inputs(parse_config(config(dataset, sentences, {}))).reads
    assert isinstance(reads, MaskedSamples)
    size, steps = RECIPE.global_batch_size, []
    for step in range(RECIPE.steps):
        rows = reads.read(range(step * size, (step + 1) * size))
        found = {
            "input_ids": rows.input_ids.astype(np.int64),
            "token_type_ids": rows.token_type_ids.astype(np.int64),
            "attention_mask": (np.arange(rows.input_ids.shape[1]) < rows.lengths[:, None]).astype(np.int64),
            "labels": np.where(rows.hidden, rows.labels.astype(np.int64), -100),
        }
        if rows.sentence_labels is not None:
            assert set(rows.sentence_labels.tolist()) == {0, 1}
            found["next_sentence_label"] = rows.sentence_labels
        steps.append({name: torch.from_numpy(value) for name, value in found.items()})
    assert any((step["attention_mask"] == 0).any() for step in steps) or not sentences
    return steps


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bert")


def carried_model(name: str) -> PreTrainedModel:
    if name == "bert":
        return plain_bert.bert(VOCABULARY, 0, sentences=True)
    return (plain_bert.roberta if name == "roberta" else plain_bert.roformer)(VOCABULARY, 0)


def carried_config(dataset: Path, name: str, parallel: dict[str, Any]) -> dict[str, Any]:
    """Our configuration of such a model."""
    made = config(dataset, name == "bert", parallel)
    if name == "roberta":
        made["model"] |= {"type_vocab_size": 1, "position_offset": 1, "max_position_embeddings": 65, "norm_eps": 1e-5}
    if name == "roformer":
        made["model"] |= {"position_embedding": "rope"}
    return made


@pytest.fixture(scope="module")
def histories(
    paragraphs: Path, folder: Path, train_layouts: Callable[[int, list[dict[str, Any]]], Histories]
) -> Callable[[int], Histories]:
    """What every layout of a number of processes saw; that is started once for all its cases."""
    came_in = {name: carried.taken_in(carried_model(name), folder / name) for name in MODELS}
    for sentences in (True, False):
        weights = plain_bert.megatron_weights(plain_bert.bert(VOCABULARY, 0, sentences))
        section = config(paragraphs, sentences, {})["model"]
        plain.write_checkpoint(weights, section, folder / f"sentences-{sentences}")

    @functools.cache
    def of(nproc: int) -> Histories:
        cases = [
            {
                "name": case_id((count, sentences, parallel)),
                "config": config(paragraphs, sentences, parallel),
                "checkpoint": str(folder / f"sentences-{sentences}"),
            }
            for count, sentences, parallel in CASES
            if count == nproc
        ]
        cases += [
            {
                "name": name,
                "config": carried_config(paragraphs, name, parallel),
                "weights": str(came_in[name]),
                "last": SHORT,
                "save": str(folder / name / f"{nproc}-processes"),
            }
            for count, parallel in CARRIED
            for name in MODELS
            if count == nproc
        ]
        return train_layouts(nproc, cases)

    return of


@pytest.fixture(scope="module")
def oracle(paragraphs: Path) -> dict[bool, tuple[list[tuple[float, float]], float]]:
    """With sentences or not: the plain loop's history, and its drift when it only sums in another order."""
    found = {}
    for sentences in (True, False):
        steps = global_batches(paragraphs, sentences)
        runs = [
            plain_bert.train_plainly(plain_bert.bert(VOCABULARY, 0, sentences), steps, RECIPE, size)
            for size in (None, 1, 2)
        ]
        found[sentences] = runs[0], max(max(differences(run, runs[0])) for run in runs[1:])
    return found


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=case_id(case), marks=[pytest.mark.slow] * (case[0] == 4)) for case in CASES]
)
def test_equals_plain_pytorch(case: Case, histories: Callable[[int], Histories], oracle: Any) -> None:
    reference, control = oracle[case[1]]
    drift = differences(histories(case[0])[case_id(case)], reference)
    assert drift[0] < FIRST_STEP
    assert max(drift) < ALL_STEPS
    assert max(drift) < CONTROLS * control, f"drifted {max(drift):.1e}, the control {control:.1e}"


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("nproc", [pytest.param(n, marks=[pytest.mark.slow] * (n == 4)) for n, _ in CARRIED])
def test_from_transformers_and_back(
    nproc: int, name: str, histories: Callable[[int], Histories], paragraphs: Path, folder: Path
) -> None:
    history = histories(nproc)[name]
    model = carried_model(name)
    before = carried.weights_of(model)
    reference = plain_bert.train_plainly(model, global_batches(paragraphs, name == "bert")[:SHORT], RECIPE)
    assert max(differences(history, reference)) < 10 * FIRST_STEP
    checkpoint = folder / name / f"{nproc}-processes" / f"step-{SHORT:08}"
    tokenizer = paragraphs.parent / "tokenizer"
    carried.assert_came_back(checkpoint, tokenizer, folder / name / f"out-{nproc}", model, before)
