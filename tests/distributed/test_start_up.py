"""Which files each rank of a run opens: rank 0 reads for all. `benchmarks/start_up.py` counts also what C++ opens."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bigtrain.config import Config, to_yaml
from bigtrain.launch.environment import World
from bigtrain.launch.local import run_workers

pytestmark = pytest.mark.distributed

SAVED = "run/checkpoints/.step-0000000{}.writing/__1_0.distcp"


def test_all_ranks_but_the_first_open_nothing_but_their_part(
    tiny: Callable[..., Config], dataset: Path, tmp_path: Path
) -> None:
    """When the run starts the file that they save; when it goes on, also those in which their tensors lie."""
    shared = tmp_path / "shared"
    shutil.copytree(dataset, shared / "data")
    config = tiny(
        f"data.train={shared / 'data/train'}",
        f"data.validation={shared / 'data/validation'}",
        "training.validation_samples=4",
        f"training.output_dir={shared / 'run'}",
        "parallel.zero_stage=1",
    )
    worker = Path(__file__).with_name("starting.py")

    def start(steps: int) -> list[set[str]]:
        """What each rank opened."""
        command = [sys.executable, str(worker), str(shared), str(steps)]
        assert run_workers(command, World(2), log_dir=shared / "run/logs", stdin=to_yaml(config)) == 0
        return [{*json.loads((shared / f"opened-{rank}-{steps}.json").read_text())} for rank in (0, 1)]

    first, second = start(1)
    assert {"data/train/dataset.json", "data/validation", "run/logs/rank-00000.log"} <= first, "the one that reads"
    assert second == {SAVED.format(1)}
    first, second = start(2)
    assert "run/checkpoints/step-00000001/.metadata" in first
    tensors = {f"run/checkpoints/step-00000001/__{rank}_0.distcp" for rank in (0, 1)}
    assert second - tensors == {SAVED.format(2)}
    assert second & tensors
    assert [path.name for path in (shared / "run/logs").iterdir()] == ["rank-00000.log"]
