"""The world that the environment describes, and what contradicts itself."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigtrain.errors import ConfigError
from bigtrain.launch.environment import World, expand_hosts, gpus_on_node, world_from_environment

WORKER = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "n1",
    "MASTER_PORT": "2900",
}
BATCH = {  # as Slurm 22.05 sets them in a batch script, and below in a task that srun started there
    "SLURM_JOB_ID": "1592488",
    "SLURM_JOB_NODELIST": "n[1-3]",
    "SLURM_NNODES": "3",
    "SLURM_NODEID": "0",
    "SLURM_PROCID": "0",
    "SLURM_GPUS_ON_NODE": "2",
}
STEP = BATCH | {
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "n[2-3]",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_NNODES": "2",
    "SLURM_NODEID": "1",
    "SLURM_PROCID": "1",
}
NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}


def test_one_machine() -> None:
    assert world_from_environment(4, NO_GPU) == World(4)
    assert world_from_environment(None, NO_GPU, model_parallel_size=6) == World(6)
    assert world_from_environment(None, NO_GPU) == World(1)
    assert world_from_environment(None, {"CUDA_VISIBLE_DEVICES": "3,5"}, model_parallel_size=6) == World(2)
    assert World(4).world_size == 4


def test_a_worker_of_an_outer_launcher() -> None:
    """Its launcher's word counts, in a Slurm job too."""
    world = World(4, nnodes=2, node_rank=1, master_address="n1", master_port=2900, is_worker=True)
    assert world_from_environment(None, STEP | WORKER) == world
    assert world_from_environment(4, WORKER) == world
    assert world.world_size == 8
    assert world_from_environment(None, {"RANK": "0", "WORLD_SIZE": "1"}) == World(1, is_worker=True)


def test_a_worker_whose_node_is_not_told() -> None:
    world = world_from_environment(None, {k: v for k, v in WORKER.items() if k != "LOCAL_WORLD_SIZE"})
    assert (world.world_size, world.is_worker) == (8, True)


def test_a_slurm_step() -> None:
    """The step's own nodes, not the job's; a port that the job's next step does not share."""
    world = world_from_environment(None, STEP)
    assert world.master_port is not None
    assert 1024 <= world.master_port < 32768
    assert world == World(2, nnodes=2, node_rank=1, master_address="n2", master_port=world.master_port)
    assert world_from_environment(None, STEP | {"SLURM_NODEID": "0"}).master_port == world.master_port
    assert world_from_environment(None, STEP | {"SLURM_STEP_ID": "1"}).master_port != world.master_port
    assert world_from_environment(None, STEP | {"SLURM_JOB_ID": "1592489"}).master_port != world.master_port


def test_a_slurm_step_obeys() -> None:
    told = STEP | NO_GPU | {"MASTER_ADDR": "n2-ib", "MASTER_PORT": "4000"}
    assert world_from_environment(8, told) == World(8, 2, 1, "n2-ib", 4000)
    del told["SLURM_GPUS_ON_NODE"]
    assert world_from_environment(None, told, model_parallel_size=3).nproc == 2


def test_a_slurm_job_of_one_node() -> None:
    """Without srun too; rank 0 then listens on any free port."""
    assert world_from_environment(None, BATCH | {"SLURM_NNODES": "1"}) == World(2)
    one = {"SLURM_STEP_NODELIST": "n2", "SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NUM_TASKS": "1"}
    assert world_from_environment(3, STEP | one) == World(3)


@pytest.mark.parametrize(
    ("env", "nproc", "message"),
    [
        ({"RANK": "0"}, None, "WORLD_SIZE is not set"),
        ({"WORLD_SIZE": "2"}, None, "RANK is not set"),
        ({**WORKER, "RANK": "8"}, None, "RANK is 8, but WORLD_SIZE is 8: ranks count from 0"),
        ({**WORKER, "RANK": "first"}, None, "RANK is 'first': it must be a whole number"),
        ({**WORKER, "RANK": "-1"}, None, "RANK is '-1': it must be a whole number"),
        ({**WORKER, "LOCAL_WORLD_SIZE": "3"}, None, "LOCAL_WORLD_SIZE is 3, which does not divide WORLD_SIZE 8"),
        ({**WORKER, "LOCAL_WORLD_SIZE": "0"}, None, "LOCAL_WORLD_SIZE is 0"),
        (WORKER, 2, "--nproc 2, but this process is one of 4 on its node"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, None, "MASTER_ADDR and MASTER_PORT is not set: where is rank 0?"),
        (BATCH, None, "this Slurm job has 3 nodes, but one process alone was started, without srun"),
        ({**STEP, "SLURM_STEP_NUM_TASKS": "4"}, None, "srun started 4 tasks on 2 nodes: start one a node"),
        ({**STEP, "SLURM_STEP_NUM_NODES": "3"}, None, "'n[2-3]' names 2 nodes, but SLURM_STEP_NUM_NODES is 3"),
        ({**STEP, "SLURM_STEP_NODELIST": "n[2-"}, None, "'n[2-' is no Slurm host list"),
        ({**STEP, "SLURM_NODEID": "2"}, None, "SLURM_NODEID is 2, but SLURM_STEP_NUM_NODES is 2"),
        ({k: v for k, v in STEP.items() if k != "SLURM_JOB_ID"}, None, "SLURM_JOB_ID is not set"),
    ],
)
def test_what_contradicts_itself(env: dict[str, str], nproc: int | None, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        world_from_environment(nproc, env)


@pytest.mark.parametrize(
    ("devices", "count"),
    [("", 0), ("0", 1), ("0,3", 2), ("GPU-8932f937,MIG-1f7a", 2), ("-1", 0), ("NoDevFiles", 0), (" 0, 1 ", 2)],
)
def test_gpus_that_are_visible(devices: str, count: int) -> None:
    assert gpus_on_node({"CUDA_VISIBLE_DEVICES": devices}) == count
    assert gpus_on_node({"CUDA_VISIBLE_DEVICES": devices, "SLURM_GPUS_ON_NODE": "8"}) == 8


@pytest.mark.parametrize(
    ("text", "hosts"),  # as `scontrol show hostnames` gives them
    [
        ("n1", "n1"),
        ("node[001-003,007],gpu5", "node001 node002 node003 node007 gpu5"),
        ("r[1-2]n[08-10],a-b.c", "r1n08 r1n09 r1n10 r2n08 r2n09 r2n10 a-b.c"),
        ("n[9-11]", "n9 n10 n11"),
        ("n[098-101]-ib", "n098-ib n099-ib n100-ib n101-ib"),
    ],
)
def test_host_lists(text: str, hosts: str) -> None:
    assert expand_hosts(text) == hosts.split()


@pytest.mark.parametrize("text", ["", "n[", "n]", "n[1", "n[1-]", "n[a-b]", "n1,", ",n1", "n[[1]]", "n[3-1]", "a b"])
def test_what_is_no_host_list(text: str) -> None:
    with pytest.raises(ConfigError, match="host list"):
        expand_hosts(text)


@given(
    st.lists(
        st.tuples(
            st.from_regex(r"[a-z][a-z-]{0,5}", fullmatch=True),
            st.lists(st.tuples(st.integers(0, 999), st.integers(0, 12)), min_size=1, max_size=4),
            st.integers(1, 4),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_a_host_list_gives_back_what_it_was_made_of(parts: list[tuple[str, list[tuple[int, int]], int]]) -> None:
    words, hosts = [], []
    for prefix, spans, width in parts:
        words.append(f"{prefix}[{','.join(f'{a:0{width}d}-{a + n:0{width}d}' for a, n in spans)}]")
        hosts += [f"{prefix}{number:0{width}d}" for a, n in spans for number in range(a, a + n + 1)]
    assert expand_hosts(",".join(words)) == hosts
