"""A model trained under tensor and pipeline parallelism, exported as a user does it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
import yaml
from random_models import LIBRARY
from transformers import AutoModelForCausalLM, AutoTokenizer

from bigtrain.prepare.prepare import prepare

ROOT = Path(__file__).parents[2]
LENGTH = 64
pytestmark = pytest.mark.distributed


def run(*command: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """As from a terminal: no trace of this process's own settings."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "TMPDIR")}
    environment = {**kept, "OMP_NUM_THREADS": "1"}
    return subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer_path: Path) -> Path:
    """Holds `data`, and `run` of three steps on four processes."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text").mkdir()
    for file in sorted(LIBRARY.glob("*.py"))[:40]:
        (folder / "text" / file.name).write_bytes(file.read_bytes()[:4000])
    prepare([folder / "text"], folder / "data", tokenizer_path, validation_fraction=0.2, workers=1)
    config = {
        "model": {
            "vocab_size": 440,  # the tokenizer's: what padding is given in training, no export has
            "hidden_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 96,
            "initializer_range": 0.1,
            "max_position_embeddings": 512,
        },
        "data": {"train": "data/train", "validation": "data/validation"},
        "parallel": {"tensor": 2, "pipeline": 2},
        "optimizer": {"lr": 0.01},
        "training": {
            "output_dir": "run",
            "steps": 3,
            "global_batch_size": 4,
            "sequence_length": LENGTH,
            "precision": "fp32",
        },
        "logging": {"wandb": "disabled"},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    done = run(sys.executable, "-m", "bigtrain", "pretrain", "run.yaml", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def convert(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, ROOT / "tools" / "convert_to_hf.py", *arguments, cwd=folder)


@pytest.fixture(scope="module")
def converted(folder: Path) -> subprocess.CompletedProcess[str]:
    """What the tool said, having made `exported`."""
    return convert(folder, "run", "exported", "--verify")


def test_the_tool_says_how_much_the_models_differ(folder: Path, converted: subprocess.CompletedProcess[str]) -> None:
    assert converted.returncode == 0, converted.stderr
    parity = json.loads((folder / "exported" / "parity.json").read_text())
    assert f"largest difference of a logit {parity['float32']['largest_difference']:.2e}" in converted.stdout
    assert parity["text"] == "data/validation"
    assert parity["float32"]["largest_difference"] < 1e-5
    assert converted.stderr == ""


def test_the_exported_model_has_the_loss_that_training_recorded(
    folder: Path, converted: subprocess.CompletedProcess[str]
) -> None:
    assert converted.returncode == 0, converted.stderr
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    (recorded,) = [row["validation_loss"] for row in rows if "validation_loss" in row]

    shards = sorted((folder / "data" / "validation").glob("*.arrow"))
    tables = [pa.ipc.open_file(pa.memory_map(str(shard))).read_all() for shard in shards]
    stream = [token for table in tables for document in table["tokens"].to_pylist() for token in document]
    count = (len(stream) - 1) // LENGTH
    inputs, labels = (torch.tensor(stream[i : i + count * LENGTH]).view(count, LENGTH) for i in (0, 1))
    model = AutoModelForCausalLM.from_pretrained(folder / "exported").eval()
    with torch.no_grad():
        loss = F.cross_entropy(model(inputs).logits.flatten(0, 1), labels.flatten())
    assert float(loss) == pytest.approx(recorded, rel=2e-6)


def test_the_exported_tokenizer_reads_the_data(folder: Path, converted: subprocess.CompletedProcess[str]) -> None:
    assert converted.returncode == 0, converted.stderr
    shard = pa.ipc.open_file(pa.memory_map(str(folder / "data" / "train" / "shard-00000.arrow"))).read_all()
    tokenizer = AutoTokenizer.from_pretrained(folder / "exported")
    for tokens, source in zip(shard["tokens"].to_pylist()[:8], shard["source"].to_pylist(), strict=False):
        text = (folder / source).read_bytes().decode()
        assert tokenizer(text, verbose=False)["input_ids"] + [tokenizer.eos_token_id] == tokens


def test_a_mistake_is_one_line_and_exit_code_2(folder: Path, converted: subprocess.CompletedProcess[str]) -> None:
    assert converted.returncode == 0, converted.stderr
    again = convert(folder, "run", "exported")
    assert again.returncode == 2
    assert again.stdout == ""
    (line,) = again.stderr.splitlines()
    assert line.startswith("error: ")
    assert "exported exists already" in line
