"""The layout as one value, and the process groups that follow from it.

Ranks are laid out with tensor parallel fastest, then context, then data parallel, then pipeline
(Megatron-core's order `tp-cp-ep-dp-pp`): the processes that talk most are neighbours.
"""

import datetime
import os
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from bigtrain.config import Config
from bigtrain.errors import PeerError, UserError
from bigtrain.parallel import compat

T = TypeVar("T")


@dataclass(frozen=True)
class Layout:
    """Sizes of the axes, and this process's place on each."""

    world_size: int
    rank: int
    tensor: int
    tensor_rank: int
    context: int
    context_rank: int
    pipeline: int
    pipeline_rank: int
    virtual_pipeline: int
    data: int
    data_rank: int
    expert: int
    """Processes that share the experts of each layer, out of its tensor x context x data ones."""
    sequence: bool
    zero_stage: int

    @property
    def is_last_stage(self) -> bool:
        """Whether this process holds the last pipeline stage, where the loss is known."""
        return self.pipeline_rank == self.pipeline - 1

    @property
    def replicas(self) -> int:
        """Processes that hold the same weights, over which gradients are reduced and ZeRO splits."""
        return self.data * self.context

    @property
    def replica_rank(self) -> int:
        """This process's place among them."""
        return self.data_rank * self.context + self.context_rank

    def describe(self) -> dict[str, int | bool]:
        """The sizes alone, for events and checkpoints."""
        return {k: v for k, v in asdict(self).items() if k != "rank" and not k.endswith("_rank")}


def start_processes(config: Config, timeout_minutes: float = 30) -> Layout:
    """Join the world that the launcher's environment describes and make every process group.

    Reads RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT; without them the world is this process.
    """
    compat.install()
    if not dist.is_initialized():
        for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"), ("MASTER_ADDR", "127.0.0.1")):
            os.environ.setdefault(name, value)
        if compat.use_gpu():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        if "MASTER_PORT" not in os.environ:
            assert os.environ["WORLD_SIZE"] == "1", "several processes need MASTER_PORT"
            os.environ["MASTER_PORT"] = "0"
        dist.init_process_group(
            "nccl" if compat.use_gpu() else "gloo", timeout=datetime.timedelta(minutes=timeout_minutes)
        )
        _start_deepspeed()
    p = config.parallel
    _destroy_groups()
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=p.tensor,
        pipeline_model_parallel_size=p.pipeline,
        virtual_pipeline_model_parallel_size=p.virtual_pipeline if p.virtual_pipeline > 1 else None,
        context_parallel_size=p.context,
        create_gloo_process_groups=False,
        expert_model_parallel_size=p.expert,
        expert_tensor_parallel_size=1,  # experts are whole: spread over more processes rather than cut
    )
    return Layout(
        world_size=dist.get_world_size(),
        rank=dist.get_rank(),
        tensor=p.tensor,
        tensor_rank=parallel_state.get_tensor_model_parallel_rank(),
        context=p.context,
        context_rank=parallel_state.get_context_parallel_rank(),
        pipeline=p.pipeline,
        pipeline_rank=parallel_state.get_pipeline_model_parallel_rank(),
        virtual_pipeline=p.virtual_pipeline,
        data=parallel_state.get_data_parallel_world_size(),
        data_rank=parallel_state.get_data_parallel_rank(),
        expert=p.expert,
        sequence=p.sequence and p.tensor > 1,
        zero_stage=p.zero_stage,
    )


def _start_deepspeed() -> None:
    import deepspeed

    compat.install_deepspeed()
    deepspeed.init_distributed("nccl" if compat.use_gpu() else "gloo", dist_init_required=False)


def _destroy_groups() -> None:
    """Give up the groups of an earlier layout: each gloo group has a thread that wakes a hundred times a second."""
    parallel_state.destroy_model_parallel()
    groups = [group for group in dist.distributed_c10d._world.pg_map if group not in (dist.group.WORLD, _control_group)]
    if groups:
        dist.barrier()  # nobody is still using them
    for group in groups:
        dist.destroy_process_group(group)


_control_group: dist.ProcessGroup | None = None


def _control() -> dist.ProcessGroup:
    """All ranks over gloo: small agreements between the processes' Python sides, which no GPU waits for."""
    global _control_group
    if _control_group is None:
        _control_group = dist.new_group(backend="gloo")
    return _control_group


def is_first_rank() -> bool:
    """Whether this process speaks for the world."""
    return dist.get_rank() == 0


def any_rank(flag: bool) -> bool:
    """Whether `flag` is true on any rank; the same answer everywhere."""
    return bool(highest(int(flag)))


def highest(value: int) -> int:
    """The greatest `value` of all ranks."""
    votes = torch.tensor(value)
    dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=_control())
    return int(votes)


def gather(value: T) -> list[T] | None:
    """The values of all ranks on rank 0, None elsewhere."""
    gathered: list[Any] | None = [None] * dist.get_world_size() if is_first_rank() else None
    dist.gather_object(value, gathered, group=_control())
    return gathered


def from_first(value: T | None) -> T:
    """Rank 0's `value`, which can be pickled, on all ranks; theirs is not looked at."""
    held: list[Any] = [value]
    dist.broadcast_object_list(held, src=0, group=_control())
    return held[0]


def sum_over_data(counts: Sequence[float]) -> list[float]:
    """The sum of each of `counts` over the data-parallel group."""
    totals = torch.tensor(counts, dtype=torch.float64, device=compat.device())
    dist.all_reduce(totals, group=parallel_state.get_data_parallel_group())
    return totals.tolist()


@contextmanager
def together() -> Iterator[None]:
    """Let an error that one rank meets in the block end it on all, so that none waits for the one that left.

    Raises:
        UserError: What a rank met, the same on all.
        Exception: What this rank met, where that is not the user's mistake.
        PeerError: With the traceback of the rank that met it.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as met:
        error = met
    if any_rank(error is not None):
        raise _shared(error)


def _shared(error: Exception | None) -> Exception:
    """The error of the lowest rank that met one, for all ranks."""
    told: list[UserError | str | None] = [None] * dist.get_world_size()
    mine = error if error is None or isinstance(error, UserError) else "".join(traceback.format_exception(error))
    dist.all_gather_object(told, mine, group=_control())
    rank, first = next((rank, met) for rank, met in enumerate(told) if met is not None)
    return first if isinstance(first, UserError) else error or PeerError(f"rank {rank} failed:\n{first}")


def stop_processes() -> None:
    """Leave the world in order: gloo aborts a process that ends while its peers still talk."""
    global _control_group
    if dist.is_initialized():
        dist.barrier()
        _control_group = None
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


class MegatronGroups:
    """Megatron-core's process groups under the names DeepSpeed asks its `mpu` for."""

    def __init__(self, zero_group: dist.ProcessGroup) -> None:
        """`zero_group` is the group over which DeepSpeed splits and reduces."""
        self._zero_group = zero_group

    def get_data_parallel_group(self) -> dist.ProcessGroup:
        return self._zero_group

    def get_data_parallel_rank(self) -> int:
        return dist.get_rank(self._zero_group)

    def get_data_parallel_world_size(self) -> int:
        return dist.get_world_size(self._zero_group)

    def get_data_parallel_group_ranks(self) -> list[int]:
        return dist.get_process_group_ranks(self._zero_group)

    def get_model_parallel_group(self) -> dist.ProcessGroup:
        return parallel_state.get_model_parallel_group()

    def get_model_parallel_rank(self) -> int:
        return dist.get_rank(parallel_state.get_model_parallel_group())

    def get_model_parallel_world_size(self) -> int:
        return dist.get_world_size(parallel_state.get_model_parallel_group())

    def get_tensor_model_parallel_group(self) -> dist.ProcessGroup:
        return parallel_state.get_tensor_model_parallel_group()

    def get_tensor_model_parallel_rank(self) -> int:
        return parallel_state.get_tensor_model_parallel_rank()

    def get_tensor_model_parallel_world_size(self) -> int:
        return parallel_state.get_tensor_model_parallel_world_size()

    def get_tensor_model_parallel_src_rank(self) -> int:
        return parallel_state.get_tensor_model_parallel_src_rank()

    def get_pipeline_model_parallel_group(self) -> dist.ProcessGroup:
        return parallel_state.get_pipeline_model_parallel_group()

    def get_pipeline_model_parallel_rank(self) -> int:
        return parallel_state.get_pipeline_model_parallel_rank()

    def get_pipeline_model_parallel_world_size(self) -> int:
        return parallel_state.get_pipeline_model_parallel_world_size()
