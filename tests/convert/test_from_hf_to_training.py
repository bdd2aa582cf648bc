"""A model from Hugging Face, trained on under tensor and pipeline parallelism as a user does it, and out again.

It must be what plain PyTorch makes of the same model in `transformers` with the same batches.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from families import FAMILIES
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1] / "distributed"))
import plain

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

RECIPE = plain.Recipe(steps=3, warmup_steps=1)
FAMILY = "gemma-3"
"""Of all the one with most that is its own."""
ROUNDING = 2e-6
MOVED = 1e-3


def bigtrain(folder: Path, *words: object) -> str:
    """As from a terminal; gives what was said."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "TMPDIR", "PYTHONPATH")}
    command = [sys.executable, "-m", "bigtrain", *map(str, words)]
    environment = {**kept, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_trained_on_it_is_what_plain_pytorch_makes_of_it(dataset: Path, tmp_path: Path) -> None:
    model = FAMILIES[FAMILY].build()
    model.save_pretrained(tmp_path / "there")
    bigtrain(tmp_path, "convert", "from-hf", "there", "here")
    sections: dict[str, Any] = RECIPE.sections(dataset, output_dir="run")
    run = {
        "extends": "here/model.yaml",
        **sections,
        "parallel": {"tensor": 2, "pipeline": 2, "sequence": True},
        "logging": {"wandb": "disabled"},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    assert "starting with the weights of" in bigtrain(tmp_path, "pretrain", "run.yaml", "--nproc", 4)
    bigtrain(tmp_path, "convert", "to-hf", "run", "again")

    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = plain.train_plainly(model, plain.read_tokens(dataset / "train"), RECIPE, 2)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    found = [(row["loss"], row["grad_norm"]) for row in rows if "loss" in row]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=ROUNDING)

    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert type(again) is type(model)
    for name, trained in again.state_dict().items():
        moved = (model.state_dict()[name] - before[name]).norm()
        assert moved > 0, name
        assert (trained - model.state_dict()[name]).norm() < MOVED * moved, name
    marker = json.loads(next((tmp_path / "run" / "checkpoints").glob("step-*/complete.json")).read_text())
    assert marker["origin"]["family"] == "gemma3_text"
    card = (tmp_path / "again" / "README.md").read_text()
    assert f"there, weights of SHA-256 `{marker['origin']['sha256']}`" in card
    assert "tensor: 2" in card
    assert (
        load_file(tmp_path / "again" / "model.safetensors").keys()
        == load_file(tmp_path / "there" / "model.safetensors").keys()
    )
