"""Generation from a run's checkpoint against `transformers`' own `generate` on the exported folder."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from bigtrain.config import ParallelConfig
from bigtrain.convert.to_hf import convert_to_hf
from bigtrain.errors import CheckpointError, ConfigError, UserError
from bigtrain.evaluate.generate import Continuation, generate, open_model
from bigtrain.evaluate.sampling import Sampling

PROMPTS = ["def f(x):", "h", "class Reader(Base): a", "to be, ", "0123456789"]
GREEDY = Sampling(temperature=0)
DRAWN = Sampling(temperature=1.3, top_k=40, top_p=0.9, seed=5)
NEW = 32


def continued(
    run: Path, prompts: list[str] = PROMPTS, sampling: Sampling = GREEDY, **options: Any
) -> list[Continuation]:
    return generate(open_model(run), prompts, sampling, **{"max_new_tokens": NEW, **options})


def by_transformers(folder: Path, prompts: list[str]) -> list[tuple[int, ...]]:
    """Each prompt alone; without what ended it."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    found = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        made = model.generate(ids, do_sample=False, max_new_tokens=NEW, attention_mask=torch.ones_like(ids))
        row = made[0, ids.shape[1] :].tolist()
        found.append(tuple(row[: row.index(94)] if 94 in row else row))
    return found


@pytest.fixture(scope="module")
def run(make_run: Callable[..., Path]) -> Path:
    return make_run(seed=2, num_key_value_heads=2)


@pytest.fixture(scope="module")
def other_run(make_run: Callable[..., Path]) -> Path:
    return make_run(seed=3, tie_word_embeddings=True, hidden_size=48, head_dim=16, num_hidden_layers=3)


@pytest.mark.parametrize("name", ["run", "other_run"])
def test_the_likeliest_tokens_are_those_of_transformers(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Alone, in batches of other lengths, and in one whose last is not full."""
    run = request.getfixturevalue(name)
    convert_to_hf(run, tmp_path / "hf")
    expected = by_transformers(tmp_path / "hf", PROMPTS)
    for batch_size in (1, 2, 5):
        made = continued(run, batch_size=batch_size)
        assert [one.ids for one in made] == expected
        assert [one.ended for one in made] == [len(ids) < NEW for ids in expected]
    from_folder = generate(open_model(tmp_path / "hf"), PROMPTS, GREEDY, max_new_tokens=NEW)
    assert [(one.ids, one.text) for one in from_folder] == [(one.ids, one.text) for one in made]
    assert {one.ended for one in made} == {True, False}


def test_what_is_drawn_depends_on_the_seed_and_the_place_alone(run: Path) -> None:
    together, alone = (continued(run, sampling=DRAWN, batch_size=size) for size in (5, 1))
    assert together == alone
    assert together != continued(run, sampling=Sampling(temperature=1.3, top_k=40, top_p=0.9, seed=6))
    same = continued(run, ["the same"] * 2, DRAWN)
    assert same[0].ids != same[1].ids


def test_without_a_limit_the_text_ends_where_the_positions_do(run: Path) -> None:
    prompts = ["x" * 60, "x" * 50]
    together, alone = (
        continued(run, prompts, Sampling(top_k=5, seed=1), max_new_tokens=None, batch_size=size) for size in (2, 1)
    )
    assert [len(one.ids) for one in together] == [4, 14]
    assert together == alone


def test_the_text_is_told_while_it_is_made(run: Path) -> None:
    told: list[tuple[int, str]] = []
    made = continued(run, batch_size=2, told=lambda place, piece: told.append((place, piece)))
    for place, one in enumerate(made):
        pieces = [piece for number, piece in told if number == place]
        assert "".join(pieces) == one.text
        assert pieces[-1] == "" not in pieces[:-1]
        assert len(pieces) > min(3, len(one.text))


def test_weights_in_bfloat16(run: Path, tmp_path: Path) -> None:
    convert_to_hf(run, tmp_path / "hf", dtype="bfloat16")
    ours, theirs = (
        generate(open_model(path, dtype="bfloat16"), PROMPTS[:1], GREEDY, max_new_tokens=1)[0]
        for path in (run, tmp_path / "hf")
    )
    assert ours.ids == theirs.ids


@pytest.mark.distributed
def test_a_model_shared_by_processes_says_the_same(run: Path, tmp_path: Path) -> None:
    """Tensor parallel draws, pipeline parallel takes the likeliest; the user's own command."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    common = ["--prompts", prompts, "--max-new-tokens", NEW, "--batch-size", 3]
    draw = ["--temperature", DRAWN.temperature, "--top-k", DRAWN.top_k, "--top-p", DRAWN.top_p, "--seed", DRAWN.seed]
    for layout, words, sampling in (
        (["--nproc", 2], draw, DRAWN),
        (["--pipeline", 2], ["--temperature", 0], GREEDY),
    ):
        output = tmp_path / f"{layout[0]}.jsonl"
        done = bigtrain("generate", run, *common, *layout, *words, "--output", output)
        assert done.returncode == 0, done.stderr
        made = continued(run, sampling=sampling)
        assert [json.loads(line)["continuation"] for line in output.read_text().splitlines()] == [o.text for o in made]
        assert done.stdout == "".join(f"{one.prompt}{one.text}\n" for one in made)  # in order, and once


def bigtrain(*words: object) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    command = [sys.executable, "-m", "bigtrain", *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


# --------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("prompts", "options", "match"),
    [
        (["a", ""], {}, "prompt 2 of 2 is empty"),
        (["x" * 64], {}, "has 64 tokens, and the model 64 positions .*: there is no room"),
        (
            ["x" * 40],
            {"max_new_tokens": 30},
            "has 40 tokens; with 30 new ones .*64 positions .*max_new_tokens=24 would",
        ),
        (["a"], {"max_new_tokens": 0}, "max_new_tokens is 0; it must be at least 1"),
        (["a"], {"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        (["a"], {"sampling": Sampling(top_p=1.5)}, "top_p is 1.5; it must be above 0 and at most 1"),
        (["a"], {"chat": True}, r"--chat needs a chat template, and the tokenizer in .*tokenizer has none"),
    ],
)
def test_what_cannot_be_continued(run: Path, prompts: list[str], options: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match):
        continued(run, prompts, **options)


def test_what_is_no_model(run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for place, match in (
        ("none", "none: no such folder"),
        ("empty", "neither a run of bigtrain .* nor a Hugging Face"),
    ):
        with pytest.raises(CheckpointError, match=match):
            open_model(tmp_path / place)
    shutil.copytree(run, tmp_path / "run")
    (marker,) = tmp_path.glob("run/checkpoints/step-*/complete.json")
    marker.unlink()
    for place in ("run", "run/checkpoints"):
        with pytest.raises(CheckpointError, match=r"no complete checkpoint \(incomplete: step-00000001\)"):
            open_model(tmp_path / place)
    with pytest.raises(CheckpointError, match="not a complete checkpoint"):
        open_model(marker.parent)


def test_a_mistake_on_the_command_line(run: Path) -> None:
    done = bigtrain("generate", run, "--prompt", "a", "--top-p", "1.1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: top_p is 1.1; it must be above 0 and at most 1\n"


def test_layouts_that_cannot_be(run: Path, make_run: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match=r"are not divisible by parallel.tensor \(3\)"):
        generate(open_model(run, parallel=ParallelConfig(tensor=3)), ["a"], GREEDY)
    experts = make_run(seed=1, num_experts=4)
    assert generate(open_model(experts), ["a"], GREEDY, max_new_tokens=4)
    with pytest.raises(ConfigError, match=r"experts .* --pipeline"):
        open_model(experts, parallel=ParallelConfig(tensor=2))


@pytest.mark.parametrize("architecture", ["bert", "t5"])
def test_another_architecture_continues_no_text(architecture: str, run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "copy", symlinks=True)
    for path in copy.glob("checkpoints/step-*/complete.json"):
        marker = json.loads(path.read_text())
        marker["model"]["architecture"] = architecture
        path.write_text(json.dumps(marker))
    with pytest.raises(CheckpointError, match=f"of model.architecture={architecture}; text is continued by gpt alone"):
        open_model(copy)
