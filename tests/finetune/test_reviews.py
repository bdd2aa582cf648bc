"""Fine-tuning learns from real reviews; a baseline of counted words is printed beside."""

import csv
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
TRAINED, HELD_OUT = 2000, 500
CHANCE_AND_MORE = 0.62
"""Half of the reviews are positive; of 500, 0.57 would be three deviations above chance."""


def take(source: Path, target: Path, count: int) -> tuple[list[str], list[str]]:
    """Some of the reviews, always the same, written to `target`."""
    csv.field_size_limit(sys.maxsize)
    with source.open(newline="", encoding="utf-8") as file:
        rows = random.Random(0).sample(list(csv.DictReader(file)), count)
    with target.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["text", "label"])
        writer.writeheader()
        writer.writerows(rows)
    return [row["text"] for row in rows], [row["label"] for row in rows]


def test_sentiment_of_reviews(tmp_path: Path) -> None:
    fetched = subprocess.run(
        [sys.executable, ROOT / "tools" / "fetch_assets.py", "imdb"], capture_output=True, text=True, check=False
    )
    assert fetched.returncode == 0, fetched.stderr
    reviews = Path(fetched.stdout.strip())
    texts, labels = take(reviews / "train.csv", tmp_path / "train.csv", TRAINED)
    unseen, truth = take(reviews / "test.csv", tmp_path / "test.csv", HELD_OUT)
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    config = {
        "model": {
            "vocab_size": 4096,
            "hidden_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "intermediate_size": 128,
            "max_position_embeddings": 128,
            "initializer_range": 0.1,
        },
        "tokenizer": {"path": "tokenizer"},
        "finetune": {"task": "classification", "train": "train.csv"},
        "optimizer": {"lr": 3e-3, "weight_decay": 0.01},
        "schedule": {"name": "linear", "warmup_steps": 10},
        "training": {
            "output_dir": "run",
            "steps": 120,
            "global_batch_size": 32,
            "micro_batch_size": 32,
            "sequence_length": 128,
            "precision": "fp32",
        },
        "checkpoint": {"interval": 0},
        "logging": {"wandb": "disabled"},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    for words in (
        "tokenizer train text.jsonl --output tokenizer --vocab-size 4096 --type wordpiece",
        "finetune run.yaml",
        "evaluate run test.csv",
    ):
        done = subprocess.run(
            [sys.executable, "-m", "bigtrain", *words.split()],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    scores = json.loads((tmp_path / "run" / "evaluation" / "test.scores.json").read_text())
    ours = scores["scores"]["accuracy"]["value"]
    counted = make_pipeline(TfidfVectorizer(sublinear_tf=True), LogisticRegression(C=10)).fit(texts, labels)
    baseline = counted.score(unseen, truth)
    print(f"accuracy on {HELD_OUT} reviews: {ours:.3f}; TF-IDF and logistic regression: {baseline:.3f}")
    assert ours > CHANCE_AND_MORE
