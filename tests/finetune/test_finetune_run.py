"""A run of fine-tuning as a user has it: trained, interrupted, resumed in another layout, judged, and built upon."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import pipeline

from bigtrain.checkpoint.find import find_best
from bigtrain.convert.to_hf import convert_to_hf

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


def bigtrain(*words: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bigtrain", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)


def succeed(*words: Any) -> str:
    done = bigtrain(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rows(run: Path) -> list[dict[str, Any]]:
    kept = ("step", "loss", "grad_norm", "validation_loss", "validation_accuracy")
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{key: row[key] for key in kept if key in row} for row in map(json.loads, lines)]


@pytest.fixture(scope="module")
def folder(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts whose class is told by one word, and a configuration that learns it from random weights in a few steps."""
    made = tmp_path_factory.mktemp("run")
    texts = [("class" if i % 2 else "import", f"self value {i} return name") for i in range(48)]
    lines = [json.dumps({"text": f"{word} {text}", "label": word}) + "\n" for word, text in texts]
    (made / "train.jsonl").write_text("".join(lines[:32]))
    (made / "held-out.jsonl").write_text("".join(lines[32:]))
    config = {
        "model": {
            "vocab_size": 512,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
        },
        "tokenizer": {"path": str(tokenizer)},
        "finetune": {
            "task": "classification",
            "train": str(made / "train.jsonl"),
            "validation": str(made / "held-out.jsonl"),
            "metric": "accuracy",
            "patience": 2,
        },
        "optimizer": {"lr": 5e-3},
        "schedule": {"name": "constant"},
        "training": {
            "output_dir": str(made / "run"),
            "steps": 40,
            "global_batch_size": 8,
            "micro_batch_size": 4,
            "sequence_length": 32,
            "precision": "fp32",
            "validation_interval": 4,
        },
        "checkpoint": {"interval": 4, "keep_last": 0},
        "logging": {"wandb": "disabled"},
    }
    (made / "config.yaml").write_text(yaml.safe_dump(config))
    return made


def test_the_road_from_examples_to_scores(folder: Path) -> None:
    run = folder / "run"
    told = succeed("finetune", folder / "config.yaml")
    whole = rows(run)
    judged = [row for row in whole if "validation_accuracy" in row]
    best = max(judged, key=lambda row: row["validation_accuracy"])
    assert best["validation_accuracy"] == 1.0
    # early stopping: two validations after the first best one, and no step more
    last = whole[-1]["step"]
    assert last == best["step"] + 8
    assert last < 40
    assert (run / "best" / "latest").read_text() == f"step-{best['step']:08d}"
    assert f"step {best['step']}: validation_loss" in told
    assert yaml.safe_load((run / "config.yaml").read_text())["finetune"]["labels"] == ["class", "import"]
    assert "is the last and is done" in succeed("finetune", folder / "config.yaml")

    # interrupted after step 4, resumed on two processes: the same curve
    for path in [*(run / "checkpoints").glob("step-*")]:
        if path.name != "step-00000004":
            shutil.rmtree(path)
    kept = run / "best" / f"step-{best['step']:08d}"
    shutil.copytree(kept, kept.with_name("step-00000040"))  # of the steps that are to be done again, and better then
    succeed("finetune", folder / "config.yaml", "--nproc", "2")
    assert [*(run / "best").glob("step-*")] == [kept]
    again = rows(run)
    assert len(again) == len(whole) > 8
    for now, before in zip(again, whole, strict=True):
        assert now == pytest.approx(before, rel=1e-4)

    # judged by the best checkpoint, whatever came after
    shown = succeed("evaluate", run, folder / "held-out.jsonl")
    assert "accuracy" in shown
    written = [json.loads(line) for line in (run / "evaluation" / "held-out.predictions.jsonl").open()]
    assert [row["id"] for row in written] == [f"line {i}" for i in range(1, 17)]
    assert [row["predicted"] for row in written] == [row["label"] for row in written]
    scores = json.loads((run / "evaluation" / "held-out.scores.json").read_text())
    assert scores["scores"]["accuracy"]["value"] == 1.0

    # as `transformers` has it, whose tokenizer puts around the texts what stood there, and batches them
    convert_to_hf(run, folder / "exported")
    texts = [json.loads(line)["text"] for line in (folder / "held-out.jsonl").open()]
    judge = pipeline("text-classification", str(folder / "exported"), top_k=None)
    for row, said in zip(written, judge(texts, batch_size=4), strict=True):
        assert {label["label"]: label["score"] for label in said} == pytest.approx(row["scores"], abs=1e-5)

    unseen = folder / "unseen.jsonl"
    unseen.write_text('{"text": "class self", "label": "def"}\n')
    refused = bigtrain("evaluate", run, unseen)
    assert refused.returncode == 2
    assert f"{unseen}: has labels that {run} does not: 'def' (1 times); it has 'class', 'import'" in refused.stderr

    # another task begins with these weights, and a head of its own
    numbers = folder / "numbers.jsonl"
    numbers.write_text("".join(json.dumps({"text": f"class {i}", "label": i / 10}) + "\n" for i in range(10)))
    other = folder / "other.yaml"
    config = yaml.safe_load((folder / "config.yaml").read_text())
    del config["model"], config["tokenizer"]
    config["finetune"] = {"task": "regression", "train": str(numbers), "validation_fraction": 0.3}
    config["checkpoint"] = {**config.get("checkpoint", {}), "initialize_from": str(run)}
    config["training"] |= {"output_dir": str(folder / "other"), "steps": 1}
    other.write_text(yaml.safe_dump(config))
    succeed("finetune", other)
    assert rows(folder / "other")[0]["step"] == 1
    assert find_best(folder / "other").origin == {"checkpoint": str(find_best(run).path), "step": best["step"]}
