"""A world of one process: what the launcher need not say, and what may be done twice."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch.distributed as dist

from bigtrain.config import Config, to_yaml
from bigtrain.errors import DataError
from bigtrain.launch.environment import World
from bigtrain.launch.local import run_workers
from bigtrain.parallel import topology
from bigtrain.parallel.topology import Layout, MegatronGroups


def test_without_a_launcher_the_world_is_this_process(world: Layout) -> None:
    assert world == Layout(
        world_size=1,
        rank=0,
        tensor=1,
        tensor_rank=0,
        context=1,
        context_rank=0,
        pipeline=1,
        pipeline_rank=0,
        virtual_pipeline=1,
        data=1,
        data_rank=0,
        expert=1,
        sequence=False,
        zero_stage=1,
    )
    assert world.is_last_stage
    assert topology.is_first_rank()


def test_a_description_has_the_sizes_alone(world: Layout) -> None:
    assert world.describe() == {
        "world_size": 1,
        "tensor": 1,
        "context": 1,
        "pipeline": 1,
        "virtual_pipeline": 1,
        "data": 1,
        "expert": 1,
        "sequence": False,
        "zero_stage": 1,
    }
    json.dumps(world.describe())


def test_agreements_of_one(world: Layout) -> None:
    assert topology.any_rank(True)
    assert not topology.any_rank(False)
    assert topology.sum_over_data([7, 0.5]) == [7, 0.5]
    with topology.together():
        pass
    with pytest.raises(DataError, match="the shard"), topology.together():
        raise DataError("the shard")
    with pytest.raises(ZeroDivisionError), topology.together():
        1 / 0  # noqa: B018


def test_deepspeed_finds_its_groups(world: Layout) -> None:
    """Every question its `mpu` is asked, in a world where each answer is known."""
    groups = MegatronGroups(dist.group.WORLD)
    questions = [name for name in dir(groups) if name.startswith("get_")]
    answers = {name: getattr(groups, name)() for name in questions}
    assert {v for k, v in answers.items() if k.endswith("_rank")} == {0}
    assert {v for k, v in answers.items() if k.endswith("_size")} == {1}
    assert all(dist.get_process_group_ranks(v) == [0] for k, v in answers.items() if k.endswith("_group"))
    assert answers["get_data_parallel_group_ranks"] == [0]


def test_start_and_stop_can_be_repeated(tiny: Callable[..., Config], world: Layout) -> None:
    assert topology.start_processes(tiny("parallel.zero_stage=3")).zero_stage == 3
    topology.stop_processes()
    topology.stop_processes()
    assert topology.start_processes(tiny()) == world
    assert topology.sum_over_data([2]) == [2]
    assert not topology.any_rank(False)


WORKER = """
import json, sys
from pathlib import Path
import torch
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from bigtrain.config import load_config
from bigtrain.errors import DataError
from bigtrain.parallel import topology
from bigtrain.parallel.random import seed_step

seen = {}
for axis in ("tensor", "pipeline", "data", "context"):
    words = [f"parallel.{axis}=2"] if axis != "data" else []
    layout = topology.start_processes(load_config(sys.argv[1], words))
    seed_step(1, 0, layout)
    with get_cuda_rng_tracker().fork():
        own = torch.rand(()).item()
    seen[axis] = {
        "ranks": [layout.tensor_rank, layout.pipeline_rank, layout.data_rank, layout.context_rank],
        "replica": [layout.replica_rank, layout.replicas],
        "last": layout.is_last_stage,
        "data": layout.data,
        "sum": topology.sum_over_data([10 + layout.rank])[0],
        "any": topology.any_rank(layout.rank == 1),
        "none": topology.any_rank(False),
        "shared_random": torch.rand(()).item(),
        "own_random": own,
    }
for name, rank, met in (("user", 1, DataError("what rank 1 met")), ("fault", 0, OSError("disk full"))):
    try:
        with topology.together():
            if layout.rank == rank:
                raise met
    except Exception as error:
        seen[name] = [type(error).__name__, str(error)]
Path(sys.argv[2], f"{layout.rank}.json").write_text(json.dumps(seen))
topology.stop_processes()
"""


@pytest.mark.distributed
def test_two_processes_know_their_places_and_agree(tiny: Callable[..., Config], tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(to_yaml(tiny()))
    (tmp_path / "worker.py").write_text(WORKER)
    command = [sys.executable, str(tmp_path / "worker.py"), str(tmp_path / "run.yaml"), str(tmp_path)]
    assert run_workers(command, World(2), log_dir=tmp_path / "logs") == 0
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))

    for position, axis in enumerate(("tensor", "pipeline", "data", "context")):
        one, other = first[axis], second[axis]
        assert one["ranks"] == [0, 0, 0, 0]
        shares_weights = axis in ("data", "context")
        assert (one["replica"], other["replica"]) == (([0, 2], [1, 2]) if shares_weights else ([0, 1], [0, 1]))
        assert [index for index, rank in enumerate(other["ranks"]) if rank == 1] == [position]
        assert one["any"] is other["any"] is True
        assert one["none"] is other["none"] is False
        assert one["own_random"] != other["own_random"], "each draws its own dropout"
    assert [first[axis]["last"] for axis in ("tensor", "pipeline", "data")] == [True, False, True]
    assert second["pipeline"]["last"]
    assert [first[axis]["sum"] for axis in ("tensor", "pipeline", "data", "context")] == [10, 10, 21, 10]
    assert [second[axis]["sum"] for axis in ("tensor", "pipeline", "data", "context")] == [11, 11, 21, 11]
    assert first["tensor"]["shared_random"] == second["tensor"]["shared_random"], "whole rows are dropped alike"
    assert first["data"]["shared_random"] != second["data"]["shared_random"]
    assert first["context"]["shared_random"] != second["context"]["shared_random"], "their tokens are others"
    assert first["user"] == second["user"] == ["DataError", "what rank 1 met"]
    assert first["fault"] == ["OSError", "disk full"]
    kind, message = second["fault"]
    assert kind == "PeerError"
    assert message.startswith("rank 0 failed:\nTraceback")
    assert "OSError: disk full" in message
