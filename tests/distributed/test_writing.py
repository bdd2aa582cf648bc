"""A run writes the texts that `generate` of `transformers` makes with its weights, token for token, in every layout."""

import csv
import functools
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from transformers import PreTrainedModel

from bigtrain.launch.environment import World
from bigtrain.launch.local import run_workers

sys.path.insert(0, str(Path(__file__).parent))
import plain
import plain_t5
import test_finetune as heads

pytestmark = pytest.mark.distributed

NEW = 14
SEARCHES: list[dict[str, Any]] = [
    {"num_beams": 1},
    {"num_beams": 4},
    {"num_beams": 4, "length_penalty": -2.0, "early_stopping": True},
    {"num_beams": 3, "length_penalty": 1.5, "early_stopping": "never"},
]
NPROC = 2
LAYOUTS: list[tuple[dict[str, Any], list[dict[str, Any]]]] = [
    ({"zero_stage": 3}, SEARCHES),  # each process writes half of the texts
    ({"tensor": 2, "sequence": True}, SEARCHES[:2]),
    ({"pipeline": 2}, SEARCHES[:2]),
]
CASES = [(architecture, *layout) for architecture in ("gpt", "t5") for layout in LAYOUTS]
TEXTS = [" ".join(heads.WORDS[i : i + 1 + 2 * i]) for i in range(5)]
"""Five: the last batch is not full, and of two processes that share them one has none in it."""
SHAPES = {
    "gpt": {**heads.SHAPE, **heads.OURS["gpt"], "num_hidden_layers": 4, "tie_word_embeddings": False},
    "t5": {**heads.SHAPE, **heads.OURS["t5"]},
}


def case_id(architecture: str, parallel: dict[str, Any]) -> str:
    return "_".join([architecture, *(f"{key}-{value}" for key, value in parallel.items())])


@functools.cache
def model(architecture: str) -> PreTrainedModel:
    """A random one that says many different things, and ends some of them."""
    made = plain.llama(512, tied=False) if architecture == "gpt" else plain_t5.t5(512, "v1.0")
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.ndim > 1 and "relative" not in name and "shared" not in name:
                parameter.mul_(5.0 if architecture == "gpt" else 10.0)
        made.get_output_embeddings().weight[2] *= 1.8
    return made.eval()


def by_transformers(architecture: str, processor: Any, how: dict[str, Any]) -> list[list[int]]:
    """All texts in one batch; each with what ended it."""
    rows = [processor.encode(f"{text} =") for text in TEXTS]
    longest = max(map(len, rows)) + 1
    made = model(architecture)
    made.config.use_cache = True
    options = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": 2, "pad_token_id": 2, **how}
    if architecture == "gpt":
        ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
        seen = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        first = longest
    else:
        ids = torch.tensor([[*row, 2, *[0] * (longest - 1 - len(row))] for row in rows])
        seen = torch.tensor([[1] * (len(row) + 1) + [0] * (longest - 1 - len(row)) for row in rows])
        first, options["decoder_start_token_id"] = 1, 2
    found = [row[first:].tolist() for row in made.generate(ids, attention_mask=seen, **options)]
    return [row[: row.index(2) + 1] if 2 in row else row for row in found]


@pytest.fixture(scope="module")
def folder(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts, and weights as checkpoints."""
    made = tmp_path_factory.mktemp("writing")
    with (made / "texts.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("source", "target"), *((text, "none") for text in TEXTS)])
    for architecture, of in (("gpt", plain.megatron_weights), ("t5", plain_t5.megatron_weights)):
        plain.write_checkpoint(of(model(architecture)), SHAPES[architecture], made / architecture)
    return made


@pytest.fixture(scope="module")
def written(folder: Path, tokenizer: Path) -> dict[str, Any]:
    """What every case wrote; the processes are started once for all."""

    def case(architecture: str, parallel: dict[str, Any], searches: list[Any]) -> dict[str, Any]:
        config = {
            "model": json.loads((folder / architecture / "complete.json").read_text())["model"],
            "tokenizer": {"path": str(tokenizer)},
            "finetune": {
                "task": "sequence_to_sequence",
                "train": str(folder / "texts.csv"),
                "prompt": "{source} =",
                "max_target_length": NEW,
            },
            "parallel": parallel,
            "training": {
                "output_dir": str(folder / "unused"),
                "steps": 1,
                "global_batch_size": 4,
                "micro_batch_size": 2,
                "sequence_length": 64,
                "precision": "fp32",
            },
        }
        name, checkpoint = case_id(architecture, parallel), str(folder / architecture)
        return {"name": name, "config": config, "checkpoint": checkpoint, "searches": searches}

    (folder / "cases.json").write_text(json.dumps([case(*row) for row in CASES]))
    script = Path(__file__).with_name("writing_layouts.py")
    command = [sys.executable, str(script), str(folder / "cases.json"), str(folder / "written.json")]
    assert run_workers(command, World(NPROC), log_dir=folder / "logs") == 0, f"see {folder / 'logs'}"
    return json.loads((folder / "written.json").read_text())


@pytest.mark.parametrize("case", [pytest.param(case, id=case_id(*case[:2])) for case in CASES])
def test_the_texts_are_those_of_transformers(case: Any, written: Any, tokenizer: Path) -> None:
    architecture, parallel, searches = case
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer))
    expected = [by_transformers(architecture, processor, how) for how in searches]
    assert written[case_id(architecture, parallel)] == expected
    if searches == SEARCHES:
        assert len({str(texts) for texts in expected}) == len(SEARCHES), "each search decides otherwise"
        assert len({len(text) for texts in expected for text in texts}) > 2, "some end before others"
        assert len({token for texts in expected for text in texts for token in text}) > 20, "much is said"
