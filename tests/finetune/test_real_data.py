"""Fine-tuning learns from real data, in little: what `benchmarks/results.py` does at length."""

import csv
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
Row = dict[str, str]


def asset(name: str) -> Path:
    fetched = subprocess.run(
        [sys.executable, ROOT / "tools" / "fetch_assets.py", name], capture_output=True, text=True, check=False
    )
    assert fetched.returncode == 0, fetched.stderr
    return Path(fetched.stdout.strip())


def bigtrain(folder: Path, *commands: str) -> None:
    """As a user types it, on two cores."""
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    for words in commands:
        done = subprocess.run(
            [sys.executable, "-m", "bigtrain", *words.split()],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def validations(folder: Path) -> list[dict[str, float]]:
    """What the run in a folder found of the held-out examples."""
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "validation_loss" in row]


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MiniLM's weights as a checkpoint."""
    folder = tmp_path_factory.mktemp("minilm")
    bigtrain(folder, f"convert from-hf {asset('minilm')} minilm")
    return folder / "minilm"


@pytest.fixture
def fine_tuned(tmp_path: Path, minilm: Path) -> Callable[..., dict[str, float]]:
    """Fine-tunes MiniLM on `train` in the test's folder; gives what it makes of `test` at the end."""

    def run(suffix: str, finetune: Mapping[str, Any], **training: int) -> dict[str, float]:
        config = {
            "finetune": {"train": f"train{suffix}", "validation": f"test{suffix}", **finetune},
            "model": {"hidden_dropout": 0.0, "attention_dropout": 0.0},
            "optimizer": {"lr": 2e-4, "weight_decay": 0.01},
            "schedule": {"name": "linear", "warmup_steps": 10},
            "training": {"output_dir": "run", "micro_batch_size": 8, "precision": "bf16", **training},
            "checkpoint": {"initialize_from": str(minilm), "interval": 0},
            "logging": {"wandb": "disabled"},
        }
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
        bigtrain(tmp_path, "finetune run.yaml")
        (found,) = validations(tmp_path)
        print(found)
        return found

    return run


def write_lines(path: Path, rows: list[Row]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def reviews(path: Path) -> list[Row]:
    """Their beginnings and ends, half of them positive."""
    csv.field_size_limit(sys.maxsize)
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    random.Random(0).shuffle(rows)
    return [
        {"text": " ".join([*(words := row["text"].split())[:16], *words[-32:]]), "label": row["label"]} for row in rows
    ]


def test_sentiment_of_reviews(tmp_path: Path, fine_tuned: Callable[..., dict[str, float]]) -> None:
    folder = asset("imdb")
    write_lines(tmp_path / "train.jsonl", reviews(folder / "train.csv")[:1000])
    write_lines(tmp_path / "test.jsonl", reviews(folder / "test.csv")[:300])
    found = fine_tuned(".jsonl", {"task": "classification"}, steps=30, global_batch_size=32, sequence_length=64)
    assert found["validation_accuracy"] > 0.65  # coin tosses are below 0.59, three deviations off


def test_entities_of_tweets(tmp_path: Path, fine_tuned: Callable[..., dict[str, float]]) -> None:
    for name in ("train", "test"):
        (tmp_path / f"{name}.conll").write_bytes((asset("ner") / f"{name}.conll").read_bytes())
    found = fine_tuned(".conll", {"task": "tagging"}, steps=80, global_batch_size=16, sequence_length=64)
    assert found["validation_f1"] > 0.12  # always O: 0; a list of the words of training and their tags reaches 0.31


def test_questions(tmp_path: Path, fine_tuned: Callable[..., dict[str, float]]) -> None:
    """On the shortest contexts."""
    for name, count in (("train", 150), ("test", 40)):
        document = json.loads((asset("qa") / f"{name}.json").read_text(encoding="utf-8"))
        (article,) = document["data"]
        article["paragraphs"] = sorted(article["paragraphs"], key=lambda paragraph: len(paragraph["context"]))[:count]
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    found = fine_tuned(".json", {"task": "question_answering"}, steps=50, global_batch_size=8, sequence_length=192)
    assert found["validation_f1"] > 35  # never an answer: 25


def test_translation(tmp_path: Path) -> None:
    """A T5 from scratch tells French of unseen pairs better and better."""
    folder = asset("translation-en-fr")
    rows = (json.loads(line) for line in (folder / "train.jsonl").read_text(encoding="utf-8").splitlines())
    short = [row for row in rows if len(row["source"].split()) <= 8]
    write_lines(tmp_path / "train.jsonl", short)
    write_lines(tmp_path / "text.jsonl", [{"text": text} for row in short for text in row.values()])
    config = {
        "model": {
            "architecture": "t5",
            "vocab_size": 2048,
            "hidden_size": 128,
            "num_hidden_layers": 2,
            "num_decoder_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 256,
            "position_embedding": "relative",
            "norm_eps": 1e-6,
            "hidden_act": "relu",
            "gated_mlp": False,
        },
        "tokenizer": {"path": "t5.model"},
        "finetune": {
            "task": "sequence_to_sequence",
            "train": "train.jsonl",
            "validation_fraction": 0.02,
            "prompt": "{source}",
        },
        "optimizer": {"lr": 3e-3, "weight_decay": 0.01},
        "schedule": {"name": "linear", "warmup_steps": 20},
        "training": {
            "output_dir": "run",
            "steps": 90,
            "global_batch_size": 64,
            "micro_batch_size": 64,
            "sequence_length": 48,
            "precision": "fp32",
            "validation_interval": 30,
        },
        "checkpoint": {"interval": 0},
        "logging": {"wandb": "disabled"},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    bigtrain(
        tmp_path,
        "tokenizer train text.jsonl --output t5.model --vocab-size 2048 --special-token <pad>",
        "finetune run.yaml",
    )
    losses = [row["validation_loss"] for row in validations(tmp_path)]
    print(losses)
    assert losses[-1] < losses[0] - 0.4
