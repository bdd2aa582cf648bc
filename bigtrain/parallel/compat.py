"""Megatron-core and DeepSpeed on a machine without a GPU, and DeepSpeed's one check that pipelines break.

Megatron-core is written for CUDA: it asks for the current device, keeps CUDA random states, its
schedules make one tensor on the literal device "cuda", and its rotary embedding one in pinned memory.
Everything that stands in for this is here and nowhere else; `tests/parallel/test_compat.py` says which
part broke when megatron-core changes. Where there is a GPU, :func:`install` leaves all of it as it is.
"""

import ctypes
import logging
import os
import warnings
from types import ModuleType
from typing import Any

import torch

_installed = False
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # <malloc.h>


def use_gpu() -> bool:
    """Whether this process computes on a CUDA device."""
    return torch.cuda.is_available()


def device() -> torch.device:
    """The device this process computes on."""
    return torch.device("cuda", torch.cuda.current_device()) if use_gpu() else torch.device("cpu")


def install() -> None:
    """Prepare torch and Megatron-core for this machine; once per process, before they are used."""
    global _installed
    if _installed:
        return
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")  # Megatron overlaps by the order of its launches
    if not use_gpu():
        _stand_in_for_cuda()
        _keep_freed_memory()
    _quiet()
    _router_without_transformer_engine()
    _installed = True


def install_deepspeed() -> None:
    """Prepare DeepSpeed; it takes seconds to import, and who does not train has no need of it."""
    _deepspeed_without_compiler()
    _check_zero3_over_data_parallel_group()


class _TorchWithoutCuda(ModuleType):
    """The torch module as some of Megatron's files see it: `device="cuda"` means the CPU, and no memory is pinned."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def zeros(*size: Any, device: Any = None, **options: Any) -> torch.Tensor:
        return torch.zeros(*size, device="cpu" if device == "cuda" else device, **options)

    @staticmethod
    def tensor(data: Any, *, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        return torch.tensor(data, **options)


def _stand_in_for_cuda() -> None:
    cpu = torch.device("cpu")
    cuda: Any = torch.cuda
    cuda.current_device = lambda: cpu
    cuda.set_device = lambda *_: None
    cuda.synchronize = lambda *_: None
    cuda.manual_seed = lambda seed: torch.manual_seed(seed)
    cuda.get_rng_state = lambda *_, **__: torch.get_rng_state()
    cuda.set_rng_state = lambda state, *_, **__: torch.set_rng_state(state)
    tensor: Any = torch.Tensor
    tensor.cuda = lambda self, *_, **__: self

    import megatron.core.models.common.embeddings.rope_utils as rope_utils
    import megatron.core.pipeline_parallel.schedules as schedules
    import megatron.core.tensor_parallel.random as random

    random._get_cuda_rng_state = lambda *_, **__: torch.get_rng_state()
    random._set_cuda_rng_state = lambda state, *_, **__: torch.set_rng_state(state)
    schedules.torch = rope_utils.torch = _TorchWithoutCuda("torch")
    _dispatch_tokens_on_cpu()


def _dispatch_tokens_on_cpu() -> None:
    """How many tokens go to which process: on a CPU nothing has to be copied to it on a stream of its own."""
    from megatron.core.transformer.moe.token_dispatcher import MoEAlltoAllTokenDispatcher

    def splits_as_lists(self: Any, point: str, tokens_per_expert: Any = None) -> Any:
        if point == self.cuda_dtoh_point:
            for name in ("input_splits", "output_splits", "output_splits_tp"):
                if isinstance(splits := getattr(self, name), torch.Tensor):
                    setattr(self, name, splits.tolist())
        return tokens_per_expert

    MoEAlltoAllTokenDispatcher.cuda_dtoh_stream = "none"
    MoEAlltoAllTokenDispatcher._maybe_dtoh_and_synchronize = splits_as_lists


def _keep_freed_memory() -> None:
    """Let glibc keep what a step frees: the next step asks for the same again.

    By default every large tensor is a mapping of its own, given back to the kernel when it is freed, and got back
    page by page: a tenth of a step's time on a CPU. (On a GPU torch's own allocator does the same.)
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def _quiet() -> None:
    """Warnings of the engines that a user can do nothing about."""
    warnings.filterwarnings("ignore", module=r"(megatron|deepspeed|torch)\.")
    for name in ("megatron", "DeepSpeed"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _router_without_transformer_engine() -> None:
    """Megatron-core 0.16's router asks whether this is None, and without Transformer Engine it has no such name."""
    import megatron.core.transformer.moe.moe_utils as moe_utils

    if not hasattr(moe_utils, "te_general_gemm"):
        moe_utils.te_general_gemm = None


def _deepspeed_without_compiler() -> None:
    """Keep DeepSpeed from compiling its shared-memory op at the first `init_distributed` on a CPU.

    It takes about a minute, needs a compiler, and only speeds up all-reduces between processes of one machine.
    """
    import deepspeed
    from deepspeed.ops import __compatible_ops__

    deepspeed.utils.logger.setLevel(logging.ERROR)
    __compatible_ops__["deepspeed_shm_comm"] = False


def _check_zero3_over_data_parallel_group() -> None:
    """Let ZeRO-3 compare its trace of modules among the ranks that share it, not over the world.

    After the first pass DeepSpeed asserts, by a broadcast over the world, that all ranks visited the
    same modules. Pipeline stages never do, and would wait for one another forever. What must agree
    are the ranks that gather the same parameters: the data-parallel group.
    """
    import deepspeed.runtime.zero.partitioned_param_coordinator as coordinator
    import torch.distributed as dist
    from megatron.core import parallel_state

    def assert_same_in_group(ints: list[int]) -> None:
        group = parallel_state.get_data_parallel_group(with_context_parallel=True)
        base = min(ints, default=0)  # ids count on from engines that this process had before
        relative = tuple(value - base for value in ints)
        mine = torch.tensor([len(ints), hash(relative) & 0x7FFFFFFF], device=device())
        first = mine.clone()
        dist.broadcast(first, dist.get_global_rank(group, 0), group=group)
        if not torch.equal(first, mine):
            raise RuntimeError(
                f"rank {dist.get_rank()} walked the modules in another order than its data-parallel peers"
            )

    coordinator.assert_ints_same_as_other_ranks = assert_same_in_group
