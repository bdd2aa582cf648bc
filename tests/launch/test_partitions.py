"""Whether a partition can meet a job's wishes."""

import math

import pytest

from bigtrain.config.launch import LaunchConfig
from bigtrain.errors import LaunchError
from bigtrain.launch.partitions import Nodes, _nodes, check, seconds_of

GPU = Nodes("gpu", True, count=4, cpus=64, memory_gb=500, gpus=8, limit="2-00:00:00")
LARGE = Nodes("gpu", True, count=1, cpus=128, memory_gb=2000, gpus=8, limit="2-00:00:00")
CPU = Nodes("cpu", False, count=100, cpus=32, memory_gb=100, gpus=0, limit="infinite")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5400),
        ("90:30", 5430),
        ("12:00:00", 43200),
        ("2-12", 216_000),
        ("1-00:30", 88_200),
        ("1-00:00:01", 86_401),
        ("infinite", math.inf),
        ("UNLIMITED", math.inf),
        ("soon", None),
        ("1:2:3:4", None),
        ("", None),
    ],
)
def test_time_limits_as_slurm_writes_them(text: str, seconds: float | None) -> None:
    assert seconds_of(text) == seconds


def test_rows_of_sinfo() -> None:
    assert _nodes("gpu*|4|64|512000|2-00:00:00|gpu:8") == Nodes("gpu", True, 4, 64, 512, 8, "2-00:00:00")
    assert _nodes("a|4|64+|1031000+|infinite|gpu:a100:4(S:0-1),gpu:v100:2,mps:400").gpus == 6
    assert _nodes("a|4|64|1000|infinite|(null)").gpus == 0


@pytest.mark.parametrize(
    ("wishes", "said"),
    [
        ({"partition": "gpus"}, r"there is no partition 'gpus' here, there are gpu, cpu; did you mean gpu\?"),
        ({"gpus_per_node": 16}, "launch.gpus_per_node is 16, but no node of partition gpu has more than 8"),
        ({"partition": "cpu", "gpus_per_node": 1}, "launch.gpus_per_node is 1, but no node of partition cpu"),
        ({"cpus_per_node": 200}, "launch.cpus_per_node is 200, but no node of partition gpu has more than 128"),
        ({"memory_gb_per_node": 4000}, "launch.memory_gb_per_node is 4000"),
        ({"nodes": 6}, "launch.nodes is 6, but partition gpu has 5 such nodes"),
        ({"nodes": 2, "memory_gb_per_node": 1000}, "launch.nodes is 2, but partition gpu has 1 such node$"),
        ({"nodes": 4, "spare_nodes": 2}, r"launch.nodes \(4\) \+ launch.spare_nodes \(2\) is 6"),
        ({"time": "3-00:00:00"}, r"launch.time \(3-00:00:00\) is above the limit of partition gpu, 2-00:00:00"),
        ({"time": "a day"}, "launch.time .'a day'. is no time limit"),
        ({"time": "00:02:00"}, r"launch.warning_seconds \(120\) is not below launch.time"),
    ],
)
def test_wishes_that_cannot_be_met(wishes: dict[str, object], said: str) -> None:
    with pytest.raises(LaunchError, match=said):
        check(LaunchConfig.model_validate(wishes), [GPU, LARGE, CPU])


def test_all_is_told_at_once() -> None:
    with pytest.raises(LaunchError) as told:
        check(LaunchConfig(gpus_per_node=16, time="30-0"), [GPU])
    assert len(str(told.value).splitlines()) == 2


@pytest.mark.parametrize(
    "wishes",
    [
        {"nodes": 5, "gpus_per_node": 8},
        {"partition": "cpu", "nodes": 100, "time": "90-0"},
        {"partition": "gpu,cpu", "nodes": 50, "time": "3-0"},
    ],
)
def test_wishes_that_can_be_met(wishes: dict[str, object]) -> None:
    check(LaunchConfig.model_validate(wishes), [GPU, LARGE, CPU])


def test_without_a_default_partition_slurm_decides() -> None:
    check(LaunchConfig(nodes=1000), [CPU])
