"""A Slurm to break, and a run to break it under."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from slurm_cluster import Cluster, running_cluster
from strikes import Runs

from bigtrain.config import Config, to_yaml


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Four nodes; needs root, see `slurm_cluster.py`."""
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    with running_cluster() as running:
        yield running


@pytest.fixture(scope="session")
def runs(
    cluster: Cluster, tiny: Callable[..., Config], dataset: Path, tmp_path_factory: pytest.TempPathFactory
) -> Runs:
    """Runs of one configuration that takes a few seconds beside the start, with dropout."""
    folder = tmp_path_factory.mktemp("slurm")
    config = tiny(
        f"data.train={dataset / 'train'}",
        "model.hidden_dropout=0.1",
        "optimizer.lr=0.01",
        "training.steps=120",
        "training.step_timeout=6",
        "checkpoint.interval=10",
        "launch.checkup_timeout=0",
    )
    (folder / "run.yaml").write_text(to_yaml(config))
    return Runs(cluster, folder, folder / "run.yaml", sys.executable)
