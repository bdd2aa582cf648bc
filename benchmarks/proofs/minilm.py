"""MiniLM's weights, fine-tuned on a task."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from proofs.bench import Bench, Took, read_scores


def from_minilm(
    bench: Bench, options: Mapping[str, Any], training: Mapping[str, Any], test: Path
) -> tuple[dict[str, Any], Took]:
    """The scores on `test` and what training took; `options` are those of `finetune`."""
    model, run = bench.folder / "minilm", bench.folder / "from-minilm"
    took = bench.bigtrain("convert", "from-hf", bench.asset("minilm"), model)
    config = {
        "finetune": {**options, "validation_fraction": 0.05},
        "model": {"hidden_dropout": 0.0, "attention_dropout": 0.0},
        "optimizer": {"lr": 2e-4, "weight_decay": 0.01},
        "schedule": {"name": "linear", "warmup_steps": 20},
        "training": {"output_dir": str(run), **training, "precision": "bf16"},
        "checkpoint": {"initialize_from": str(model), "interval": 0},
        "logging": {"wandb": "disabled"},
    }
    took += bench.bigtrain("finetune", bench.write("finetune.yaml", config))
    bench.bigtrain("evaluate", run, test)
    return read_scores(run / "evaluation" / "test.scores.json"), took
