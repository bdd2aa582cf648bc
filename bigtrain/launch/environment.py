"""Which world this process belongs to, read from the environment variables that its starter set."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from bigtrain.errors import ConfigError

_RANGES = r"\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*"
_HOST = rf"(?:[^\[\],\s]|\[{_RANGES}\])+"
_HOST_LIST = re.compile(rf"{_HOST}(?:,{_HOST})*")
_FIRST_PORT, _PORTS = 15_000, 15_000  # unprivileged, and below the range that Linux gives to outgoing connections


@dataclass(frozen=True)
class World:
    """The processes of a run, as seen from one node of it."""

    nproc: int
    """Processes on this node; the same on every node."""
    nnodes: int = 1
    node_rank: int = 0
    master_address: str = "127.0.0.1"
    """Where rank 0 listens for the others."""
    master_port: int | None = None
    """Its port; None: any free one, chosen when the processes are started."""
    is_worker: bool = False
    """This process is one of the processes already: an outer launcher started it."""

    @property
    def world_size(self) -> int:
        """Processes on all nodes together."""
        return self.nproc * self.nnodes


def world_from_environment(nproc: int | None, env: Mapping[str, str], model_parallel_size: int = 1) -> World:
    """The world of this process: a launcher's, else that of the Slurm step, else this machine alone.

    Args:
        nproc: Processes a node, where the user said so. None: as many as there are GPUs for this job on this
            node; without any GPU what one copy of the model takes.
        env: The environment variables.
        model_parallel_size: Processes that together hold one copy of the model.

    Raises:
        ConfigError: The variables contradict one another or the user, or cannot be read.
    """
    if "RANK" in env or "WORLD_SIZE" in env:
        return _outer_world(nproc, env)
    if "SLURM_STEP_ID" in env:
        nnodes = _number(env, "SLURM_STEP_NUM_NODES")
        hosts = _step_hosts(env, nnodes)
    else:
        _refuse_idle_nodes(env)
        nnodes, hosts = 1, []
    nproc = nproc or gpus_on_node(env) or -(-model_parallel_size // nnodes)
    if nnodes == 1:
        return World(nproc)
    node_rank = _number(env, "SLURM_NODEID")
    if node_rank >= nnodes:
        raise ConfigError(f"SLURM_NODEID is {node_rank}, but SLURM_STEP_NUM_NODES is {nnodes}")
    port = _number(env, "MASTER_PORT") if "MASTER_PORT" in env else _port_of_step(env)
    return World(nproc, nnodes, node_rank, env.get("MASTER_ADDR", hosts[0]), port)


def expand_hosts(text: str) -> list[str]:
    """The hosts of a Slurm host list, in order: `node[08-10],gpu5` is node08, node09, node10, gpu5.

    Raises:
        ConfigError: It is no host list.
    """
    if not _HOST_LIST.fullmatch(text):
        raise ConfigError(f"{text!r} is no Slurm host list; one reads node[001-003,007],gpu5")
    hosts = []
    for word in re.findall(_HOST, text):
        pieces = re.split(rf"\[({_RANGES})\]", word)  # every other piece is the inside of brackets
        choices = [_expand_ranges(piece) if place % 2 else [piece] for place, piece in enumerate(pieces)]
        hosts += ["".join(parts) for parts in product(*choices)]
    return hosts


def gpus_on_node(env: Mapping[str, str]) -> int:
    """GPUs that this process may use on its node: Slurm's word, else CUDA_VISIBLE_DEVICES, else the device files."""
    if re.fullmatch(r"\d+", env.get("SLURM_GPUS_ON_NODE", "")):
        return int(env["SLURM_GPUS_ON_NODE"])
    if "CUDA_VISIBLE_DEVICES" in env:
        names = [name.strip() for name in env["CUDA_VISIBLE_DEVICES"].split(",")]
        return len([name for name in names if re.match(r"\d|GPU-|MIG-", name)])
    return len([file for file in Path("/dev").glob("nvidia*") if re.fullmatch(r"nvidia\d+", file.name)])


def _outer_world(nproc: int | None, env: Mapping[str, str]) -> World:
    """The world in which torchrun, our own supervisor or the like started this process."""
    rank, size = _number(env, "RANK"), _number(env, "WORLD_SIZE")
    if rank >= size:
        raise ConfigError(f"RANK is {rank}, but WORLD_SIZE is {size}: ranks count from 0")
    local = _number(env, "LOCAL_WORLD_SIZE") if "LOCAL_WORLD_SIZE" in env else size
    if local < 1 or size % local:
        raise ConfigError(f"LOCAL_WORLD_SIZE is {local}, which does not divide WORLD_SIZE {size}")
    if nproc is not None and nproc != local:
        raise ConfigError(
            f"--nproc {nproc}, but this process is one of {local} on its node, started by an outer launcher "
            "(RANK and WORLD_SIZE are set): leave --nproc out, or start without the launcher"
        )
    if size == 1:
        return World(1, is_worker=True)
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in env]
    if missing:
        raise ConfigError(f"WORLD_SIZE is {size}, but {' and '.join(missing)} is not set: where is rank 0?")
    port = _number(env, "MASTER_PORT")
    return World(local, size // local, rank // local, env["MASTER_ADDR"], port, is_worker=True)


def _step_hosts(env: Mapping[str, str], nnodes: int) -> list[str]:
    hosts = expand_hosts(env.get("SLURM_STEP_NODELIST", ""))
    if len(hosts) != nnodes:
        raise ConfigError(
            f"SLURM_STEP_NODELIST {env['SLURM_STEP_NODELIST']!r} names {len(hosts)} nodes, "
            f"but SLURM_STEP_NUM_NODES is {nnodes}"
        )
    tasks = _number(env, "SLURM_STEP_NUM_TASKS")
    if tasks != nnodes:
        raise ConfigError(
            f"srun started {tasks} tasks on {nnodes} node{'s' * (nnodes > 1)}: start one a node with "
            "--ntasks-per-node=1, and say with --nproc how many processes each of them starts"
        )
    return hosts


def _refuse_idle_nodes(env: Mapping[str, str]) -> None:
    """In a job of several nodes, outside srun, all but the first node would stay idle."""
    nnodes = _number(env, "SLURM_NNODES") if "SLURM_NNODES" in env else 1
    if nnodes > 1:
        raise ConfigError(
            f"this Slurm job has {nnodes} nodes, but one process alone was started, without srun: put "
            "`srun --ntasks-per-node=1` before the command, or use slurm/pretrain.sh, which does"
        )


def _port_of_step(env: Mapping[str, str]) -> int:
    """The same on all nodes, and another one for the next job or step."""
    job, step = _number(env, "SLURM_JOB_ID"), _number(env, "SLURM_STEP_ID")
    return _FIRST_PORT + (job * 101 + step) % _PORTS


def _expand_ranges(text: str) -> list[str]:
    numbers = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        last = last or first
        if int(last) < int(first):
            raise ConfigError(f"a Slurm host list counts up, but here is [{part}]")
        numbers += [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    return numbers


def _number(env: Mapping[str, str], name: str) -> int:
    if name not in env:
        raise ConfigError(f"the environment variable {name} is not set, though others of its kind are")
    if not re.fullmatch(r"\d+", env[name]):
        raise ConfigError(f"the environment variable {name} is {env[name]!r}: it must be a whole number")
    return int(env[name])
