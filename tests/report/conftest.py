"""A run's folder as training leaves it, its records written by hand."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

LAYOUT = {"world_size": 4, "tensor": 2, "context": 1, "pipeline": 1, "virtual_pipeline": 1, "data": 2, "zero_stage": 1}
ALONE = {**LAYOUT, "world_size": 1, "tensor": 1, "data": 1}


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Writes 40 steps, every other one logged, four validations, a resume after step 20."""

    def make(validation: Path | None = None) -> Path:
        run = tmp_path / "my run"
        run.mkdir()
        config = {
            "model": {"vocab_size": 256, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 8},
            "data": {"train": "data/train", "validation": str(validation) if validation else None},
            "training": {"output_dir": "run", "steps": 50, "global_batch_size": 4, "sequence_length": 32},
        }
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        rows: list[dict[str, Any]] = []
        for step in range(2, 41, 2):
            row = {"step": step, "tokens": 128 * step, "loss": 2 + 4 * math.exp(-step / 8), "grad_norm": 1.0}
            speed = {"step_seconds": 0.5, "tokens_per_second": 256.0 if step > 2 else 1.0}
            rows.append({**row, "learning_rate": 1e-3, **speed, "model_flops_utilization": None, "memory_bytes": 1})
            if step % 10 == 0:
                loss = 2.5 + abs(step - 30) / 100
                rows.append({"step": step, "validation_loss": loss, "validation_bits_per_byte": loss / 2})
        events = [
            {"event": "start", "time": 1.7e9, "step": 0, "world_size": 4, "layout": LAYOUT},
            {"event": "checkpoint", "time": 1.7e9, "step": 20, "world_size": 4, "path": "checkpoints/<b>"},
            {
                "event": "resume",
                "time": 1.7e9,
                "step": 20,
                "world_size": 1,
                "layout": {**LAYOUT, "tensor": 1, "data": 1},
            },
        ]
        write_rows(run / "metrics.jsonl", rows)
        write_rows(run / "events.jsonl", events)
        return run

    return make


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
