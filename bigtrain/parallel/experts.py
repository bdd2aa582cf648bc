"""Experts under ZeRO: DeepSpeed reduces and splits them over the processes that hold the same ones."""

from collections.abc import Iterable

import torch.distributed as dist
from deepspeed.moe.layer import MoE
from deepspeed.utils import groups
from megatron.core import parallel_state
from torch import nn

from bigtrain.models.experts import is_expert

NAME = "experts"


class ExpertGroups(MoE):
    """A module without parameters: DeepSpeed looks for a `MoE` in the model, and asks it for the groups.

    They are Megatron-core's. `contiguous_gradients` must be on (`deepspeed_config` sees to it): without it DeepSpeed
    averages experts over the dense data-parallel group, where other experts lie, and says nothing.
    """

    def __init__(self, num_experts: int) -> None:
        nn.Module.__init__(self)
        self.num_experts = num_experts
        self.expert_group_name = NAME

    def set_deepspeed_parallelism(self, use_data_before_expert_parallel_: bool = False) -> None:
        share = parallel_state.get_expert_model_parallel_group()
        same = parallel_state.get_expert_data_parallel_group()
        groups._EXPERT_PARALLEL_GROUP[NAME] = share
        groups._EXPERT_PARALLEL_GROUP_RANKS[NAME] = dist.get_process_group_ranks(share)
        groups._EXPERT_DATA_PARALLEL_GROUP[NAME] = same
        groups._EXPERT_DATA_PARALLEL_GROUP_RANKS[NAME] = dist.get_process_group_ranks(same)


def set_experts_apart(chunks: Iterable[nn.Module]) -> None:
    """Tell DeepSpeed which parameters are experts, and that each process's count in the gradient norm."""
    for chunk in chunks:
        for name, parameter in chunk.named_parameters():
            if is_expert(name):
                parameter.allreduce = False  # type: ignore[attr-defined]
                parameter.group_name = NAME  # type: ignore[attr-defined]
                parameter.model_parallel = True  # type: ignore[attr-defined]


def lies_apart(parameter: nn.Parameter) -> bool:
    """Whether :func:`set_experts_apart` has marked it."""
    return getattr(parameter, "group_name", None) == NAME
