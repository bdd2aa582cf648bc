"""A run that makes texts of texts, as a user has it: the best checkpoint is the best in BLEU, and beams write more."""

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
import sacrebleu
import yaml
from typer.testing import CliRunner

from bigtrain.cli import app

WORDS = ["import", "json", "class", "value", "return", "self"]
OTHERS = dict(zip(WORDS, ["none", "true", "async", "def", "wait", "loop"], strict=True))
WRITTEN = 20


def bigtrain(*words: Any) -> str:
    """A command, in this process; what a world of one process leaves in the environment is taken back."""
    before = dict(os.environ)
    done = CliRunner().invoke(app, [*map(str, words)])
    os.environ.clear()
    os.environ.update(before)
    assert done.exit_code == 0, done.exception or done.output
    return done.stdout


def test_the_best_in_bleu_is_kept(tokenizer: Path, tmp_path: Path) -> None:
    draw = random.Random(1)
    sentences = [draw.choices(WORDS, k=draw.randint(4, 6)) for _ in range(300)]
    lines = [
        json.dumps({"source": " ".join(words), "target": " ".join(OTHERS[word] for word in words)}) + "\n"
        for words in sentences
    ]
    (tmp_path / "train.jsonl").write_text("".join(lines[:260]))
    (tmp_path / "held-out.jsonl").write_text("".join(lines[260:]))
    run = tmp_path / "run"
    config = {
        "model": {
            "architecture": "t5",
            "vocab_size": 512,
            "hidden_size": 48,
            "num_hidden_layers": 2,
            "num_decoder_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 96,
            "max_position_embeddings": 64,
            "position_embedding": "relative",
        },
        "tokenizer": {"path": str(tokenizer)},
        "finetune": {
            "task": "sequence_to_sequence",
            "train": str(tmp_path / "train.jsonl"),
            "validation": str(tmp_path / "held-out.jsonl"),
            "metric": "bleu",
            "validation_texts": WRITTEN,
            "max_target_length": 24,
        },
        "optimizer": {"lr": 5e-3},
        "schedule": {"name": "linear", "warmup_steps": 5},
        "training": {
            "output_dir": str(run),
            "steps": 60,
            "global_batch_size": 32,
            "micro_batch_size": 16,
            "sequence_length": 48,
            "precision": "fp32",
            "validation_interval": 20,
        },
        "checkpoint": {"interval": 0},
        "logging": {"wandb": "disabled"},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    bigtrain("finetune", tmp_path / "config.yaml")
    rows = [row for row in map(json.loads, (run / "metrics.jsonl").open()) if "validation_bleu" in row]
    assert [row["step"] for row in rows] == [20, 40, 60]
    best = max(rows, key=lambda row: row["validation_bleu"])
    assert best["validation_bleu"] > rows[0]["validation_bleu"] > 0
    assert (run / "best" / "latest").read_text() == f"step-{best['step']:08d}"

    made, scores = {}, {}
    for beams in (1, 3):
        told = bigtrain("evaluate", run, tmp_path / "held-out.jsonl", "--num-beams", beams, "--length-penalty", 0.5)
        found = [json.loads(line) for line in (run / "evaluation" / "held-out.predictions.jsonl").open()]
        made[beams] = [row["predicted"] for row in found]
        scores[beams] = json.loads((run / "evaluation" / "held-out.scores.json").read_text())
        signature = scores[beams]["details"]["signatures"]["bleu"]
        assert f"bleu: {signature}" in told
        assert "tok:13a|smooth:exp" in signature
    targets = [row["target"] for row in found]
    some = made[1][:WRITTEN], [targets[:WRITTEN]]
    assert best["validation_bleu"] == pytest.approx(sacrebleu.corpus_bleu(*some).score)
    assert best["validation_chrf"] == pytest.approx(sacrebleu.corpus_chrf(*some).score)
    assert made[3] != made[1]
    assert scores[3]["details"]["generation"] == {
        "num_beams": 3,
        "length_penalty": 0.5,
        "early_stopping": False,
        "max_target_length": 24,
    }
