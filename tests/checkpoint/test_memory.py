"""What a save needs of a process's memory: the copy, once, and little beside."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from bigtrain.config import Config, to_yaml

LITTLE = 8_000_000
"""Bytes: plans, buffers of files, code that is loaded; the largest tensor here has 16.8 million."""


def test_the_copy_is_all_that_a_save_adds(tiny: Callable[..., Config], tmp_path: Path) -> None:
    config = tiny("model.vocab_size=32768", "model.hidden_size=128", "model.tie_word_embeddings=true")
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    command = [sys.executable, str(Path(__file__).with_name("growing.py")), tmp_path / "run.yaml", tmp_path]
    grown = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    assert grown["copy"] > 50_000_000
    assert grown["copy"] - LITTLE < grown["first"] < grown["copy"] + LITTLE
    assert grown["second"] < LITTLE
    assert grown["in_place"] < LITTLE, "not beside training nothing is copied"
