"""A Slurm to break, and runs to break it under."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from slurm_cluster import Cluster, running_cluster

from bigtrain.config import Config, to_yaml

pytest.register_assert_rewrite("lives", "strikes")

from lives import LIVES  # noqa: E402
from strikes import Recovery, Runs  # noqa: E402

AT_ONCE = 4
"""Lives, beside the tests: waiting takes most of their time."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The checkup measures how quick nodes are, and has to be last: when no life goes on any more."""
    items.sort(key=lambda item: item.path.name == "test_checkup_of_nodes.py")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Some nodes; needs root, see `slurm_cluster.py`."""
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    with running_cluster() as running:
        yield running


@pytest.fixture(scope="session")
def runs(
    cluster: Cluster,
    tiny: Callable[..., Config],
    tokenizer: Path,
    dataset: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Runs:
    """Runs of one configuration that takes a few seconds beside the start, with dropout."""
    folder = tmp_path_factory.mktemp("slurm")
    config = tiny(
        f"data.train={dataset / 'train'}",
        "model.hidden_dropout=0.1",
        "optimizer.lr=0.01",
        "training.steps=300",
        "training.step_timeout=6",
        "checkpoint.interval=10",
        "launch.checkup_timeout=0",
    )
    (folder / "run.yaml").write_text(to_yaml(config))
    shutil.copy(tokenizer, folder / "tokenizer.model")
    return Runs(cluster, folder, folder / "run.yaml", sys.executable)


@pytest.fixture(scope="session", autouse=True)
def lives(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[list[Recovery]]]]:
    """The lives whose tests are selected, begun before the first test and going on beside the others."""
    items = [item for item in request.session.items if item.get_closest_marker("slurm")]
    called = {name for item in items for name in LIVES if item.name.endswith(f"[{name}]")}
    if not called:
        yield {}
        return
    runs = request.getfixturevalue("runs")
    pool = ThreadPoolExecutor(AT_ONCE)
    try:
        yield {name: pool.submit(life, runs) for name, life in LIVES.items() if name in called}
    finally:
        pool.shutdown(cancel_futures=True)
