"""A small, sound configuration that each test bends in one place."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from bigtrain.config import Config, parse_config
from bigtrain.config.reading import Layer, merge, override_layer

SOUND = """
model: {vocab_size: 256, hidden_size: 64, num_hidden_layers: 4, num_attention_heads: 8, num_key_value_heads: 4}
data: {train: data/train, validation: data/validation}
training: {output_dir: run, steps: 100, global_batch_size: 16, micro_batch_size: 2, sequence_length: 128}
"""


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    """The file of a configuration that works on 1, 2, 4 and 8 processes."""
    path = tmp_path / "sound.yaml"
    path.write_text(SOUND)
    return path


@pytest.fixture
def bend() -> Callable[..., Config]:
    """The sound configuration with overrides."""

    def bent(*overrides: str) -> Config:
        return parse_config(merge([Layer("", yaml.safe_load(SOUND)), *map(override_layer, overrides)]))

    return bent
