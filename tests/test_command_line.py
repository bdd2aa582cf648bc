"""The command line as a user has it: train, stop, resume, export, load."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

ROOT = Path(__file__).parents[1]
NOT_COMPARED = {"step_seconds", "data_seconds", "tokens_per_second", "memory_bytes", "model_flops_utilization"}


def bigtrain(*words: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bigtrain", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, check=False, **options)


@pytest.fixture
def config(dataset: Path, tmp_path: Path) -> Path:
    """A small run with everything that a resume could get wrong: dropout, shuffling, a schedule, validation."""
    path = tmp_path / "run.yaml"
    run = {
        "extends": str(ROOT / "configs/models/tiny-llama.yaml"),
        "model": {"vocab_size": 512, "hidden_dropout": 0.1, "attention_dropout": 0.1},
        "data": {"train": str(dataset / "train"), "validation": str(dataset / "validation")},
        "parallel": {"tensor": 2},
        "optimizer": {"lr": 3e-3},
        "schedule": {"name": "constant", "warmup_steps": 2},
        "training": {
            "output_dir": str(tmp_path / "run"),
            "steps": 8,
            "global_batch_size": 4,
            "sequence_length": 64,
            "precision": "fp32",
            "validation_interval": 3,
            "validation_samples": 6,
        },
        "checkpoint": {"interval": 2},
        "logging": {"wandb": "disabled"},
    }
    path.write_text(yaml.safe_dump(run))
    return path


def metrics(run: Path) -> list[dict[str, Any]]:
    """Rows without what a clock decides."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in NOT_COMPARED} for row in rows]


def events(run: Path) -> list[str]:
    return [json.loads(line)["event"] for line in (run / "events.jsonl").read_text().splitlines()]


def succeed(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.distributed
def test_train_resume_export(config: Path, tmp_path: Path) -> None:
    succeed(bigtrain("pretrain", config, "--nproc", 2))
    whole = metrics(tmp_path / "run")
    losses = [row["loss"] for row in whole if "loss" in row]
    assert [row["step"] for row in whole if "loss" in row] == list(range(1, 9))
    assert [row["step"] for row in whole if "validation_loss" in row] == [3, 6, 8]
    assert losses[-1] < losses[0] - 0.3, "it learns"
    assert sorted(p.name for p in (tmp_path / "run/checkpoints").iterdir()) == [
        "latest",
        "step-00000006",
        "step-00000008",
    ]

    # In two pieces, the second from a checkpoint: the same run to the last bit.
    pieces = f"training.output_dir={tmp_path / 'pieces'}"
    succeed(bigtrain("pretrain", config, pieces, "training.steps=4", "--nproc", 2))
    succeed(bigtrain("pretrain", config, pieces, "--nproc", 2))
    resumed = [row for row in metrics(tmp_path / "pieces") if not ("validation_loss" in row and row["step"] == 4)]
    assert resumed == whole
    assert events(tmp_path / "pieces").count("resume") == 1

    # Finished: starting it again does nothing and says so.
    assert "step 8" in succeed(bigtrain("pretrain", config, "--nproc", 2))
    assert metrics(tmp_path / "run") == whole

    # On in another layout, then out to Hugging Face.
    other_layout = ["parallel.tensor=1", "parallel.zero_stage=3"]
    succeed(bigtrain("pretrain", config, *other_layout, "training.steps=9", "--nproc", 2))
    validation_loss = metrics(tmp_path / "run")[-1]["validation_loss"]
    tool = [sys.executable, ROOT / "tools/convert_to_hf.py", tmp_path / "run", tmp_path / "hf", "--verify"]
    converted = subprocess.run(tool, capture_output=True, text=True, timeout=280, check=False)
    assert converted.returncode == 0, converted.stdout + converted.stderr
    settings = yaml.safe_load(config.read_text())
    count = settings["training"]["validation_samples"]
    assert loss_in_transformers(tmp_path / "hf", settings, count) == pytest.approx(validation_loss, rel=1e-5)

    # What is exported predicts the whole held-out text as plain PyTorch says.
    length = settings["training"]["sequence_length"]
    held_out = settings["data"]["validation"]
    told = succeed(bigtrain("evaluate", tmp_path / "hf", held_out, "--sequence-length", length))
    assert "bits per byte" in told
    scores = json.loads((tmp_path / "hf/evaluation/validation.scores.json").read_text())
    everything = loss_in_transformers(tmp_path / "hf", settings, scores["examples"])
    assert scores["scores"]["loss"]["value"] == pytest.approx(everything, rel=1e-5)
    assert scores["scores"]["loss"]["low"] < everything < scores["scores"]["loss"]["high"]


def loss_in_transformers(folder: Path, settings: dict[str, Any], count: int) -> float:
    """Of the exported model on the first validation windows, read with pyarrow."""
    sys.path.insert(0, str(ROOT / "tests/distributed"))
    from plain import read_tokens
    from transformers import AutoModelForCausalLM

    length = settings["training"]["sequence_length"]
    tokens = read_tokens(Path(settings["data"]["validation"]))
    windows = torch.stack([tokens[i * length : i * length + length + 1] for i in range(count)])
    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32)
    with torch.no_grad():
        logits = model(windows[:, :-1]).logits
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()))


@pytest.mark.distributed
def test_a_signal_saves_and_asks_to_be_requeued(config: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bigtrain", "pretrain", str(config), "training.steps=3000", "--nproc", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout is not None
        first_step = next((line for line in launcher.stdout if line.startswith("step 1/")), None)
        assert first_step is not None
        launcher.send_signal(signal.SIGUSR1)
        launcher.communicate(timeout=120)
    assert launcher.returncode == 75
    assert events(tmp_path / "run")[-2:] == ["checkpoint", "preempt"]
    done = metrics(tmp_path / "run")
    steps = done[-1]["step"]

    succeed(bigtrain("pretrain", config, f"training.steps={steps + 2}", "--nproc", 2))
    assert [row for row in metrics(tmp_path / "run") if row["step"] <= steps and "loss" in row] == [
        row for row in done if "loss" in row
    ]
    assert events(tmp_path / "run")[-1] == "stop"
