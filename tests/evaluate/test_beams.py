"""Beam search against `transformers`' own `generate`, token for token."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from bigtrain.convert.to_hf import convert_to_hf
from bigtrain.errors import UserError
from bigtrain.evaluate.beams import Beams
from bigtrain.evaluate.generate import generate, open_model

END, NEW = 94, 24
PROMPTS = ["def f(x):", "h", "class Reader(Base): a", "to be, ", "0123456789"]
SEARCHES: list[dict[str, Any]] = [
    {"num_beams": 4},
    {"num_beams": 4, "length_penalty": 0.0, "early_stopping": True},
    {"num_beams": 3, "length_penalty": 2.0, "early_stopping": "never"},
    {"num_beams": 5, "length_penalty": -1.5},
    {"num_beams": 3, "early_stopping": "never"},
]


@pytest.fixture(scope="module")
def run(make_run: Callable[..., Path]) -> Path:
    return make_run(seed=2, num_key_value_heads=2, initializer_range=0.25)


@pytest.fixture(scope="module")
def folder(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hf")
    convert_to_hf(run, folder / "model")
    return folder / "model"


def by_transformers(model: PreTrainedModel, folder: Path, **how: Any) -> list[list[int]]:
    """All prompts in one batch; with what ended each."""
    rows = [AutoTokenizer.from_pretrained(folder)(prompt)["input_ids"] for prompt in PROMPTS]
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    seen = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    made = model.generate(ids, attention_mask=seen, do_sample=False, max_new_tokens=NEW, pad_token_id=END, **how)
    found = [row[longest:].tolist() for row in made]
    return [row[: row.index(END) + 1] if END in row else row for row in found]


def test_the_likeliest_texts_are_those_of_transformers(run: Path, folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    told = []
    for how in SEARCHES:
        expected = by_transformers(model, folder, **how)
        for path, batch_size in ((run, 5), (run, 2), (folder, 5)):
            made = generate(open_model(path), PROMPTS, Beams(**how), max_new_tokens=NEW, batch_size=batch_size)
            assert [[*one.ids, *[END] * one.ended] for one in made] == expected, how
        told.append(expected)
    lengths = [{len(row) for row in expected} for expected in told]
    assert any(len(of_search) > 1 for of_search in lengths), "some end before others"
    assert len({str(expected) for expected in told}) >= len(SEARCHES) - 1, "searches decide otherwise"
    assert by_transformers(model, folder, num_beams=1) not in told


def test_one_beam_takes_the_likeliest_token(run: Path, folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    expected = by_transformers(model, folder)
    for penalty in (1.0, -3.0):
        made = generate(open_model(run), PROMPTS, Beams(1, penalty), max_new_tokens=NEW, batch_size=3)
        assert [[*one.ids, *[END] * one.ended] for one in made] == expected


def test_options_out_of_range(run: Path) -> None:
    for how, match in (
        (Beams(0), "num_beams is 0; it must be at least 1"),
        (Beams(2, float("inf")), "length_penalty is inf"),
        (Beams(64), "num_beams is 64, which chooses among 128 tokens, and the model has 95; take fewer"),
    ):
        with pytest.raises(UserError, match=match):
            generate(open_model(run), ["a"], how, max_new_tokens=4)
