"""Runs on the shared dataset."""

from collections.abc import Callable
from pathlib import Path

import pytest

from bigtrain.config import Config


@pytest.fixture
def run_config(tiny: Callable[..., Config], dataset: Path, tmp_path: Path) -> Callable[..., Config]:
    """The tiny configuration on the shared dataset, into a folder of the test's own."""
    words = (f"data.train={dataset / 'train'}", f"training.output_dir={tmp_path / 'run'}")
    return lambda *overrides: tiny(*words, *overrides)
