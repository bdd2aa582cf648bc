"""A mixture of experts out of Megatron-core's layer, with router losses that do not depend on the layout."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer import ModuleSpec, TransformerConfig
from megatron.core.transformer.mlp import MLPSubmodules
from megatron.core.transformer.moe.experts import SequentialMLP
from megatron.core.transformer.moe.moe_layer import MoELayer, MoESubmodules
from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler
from megatron.core.transformer.moe.router import TopKRouter
from torch import Tensor, nn

from bigtrain.config import ModelConfig


class Router(TopKRouter):
    """Megatron-core's top-k router, whose losses are taken over whole sequences.

    Megatron's load-balancing loss is that of a micro-batch, and so depends on what else lies in it: on the
    micro-batch size and the number of data-parallel processes. A sequence is the same in every layout.
    """

    def __init__(self, *args: Any, aux_loss_coef: float, z_loss_coef: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.coefficients = (aux_loss_coef, z_loss_coef)
        self.losses: list[Tensor] = []
        """This process's share of (load-balancing loss, z-loss) of each forward pass since they were taken."""

    def routing(self, logits: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Choose the experts of each token.

        Args:
            logits: [s, b, experts] float32; with sequence parallelism s is this process's part.

        Returns:
            The weights of the chosen experts and which they are: [s * b, experts] each.
        """
        weights, chosen = super().routing(logits, *args, **kwargs)
        if not (self.training and torch.is_grad_enabled()):  # with recomputing, the second pass counts
            return weights, chosen
        losses = router_losses(logits, chosen.view_as(logits), self.tp_cp_group)
        self.losses.append(losses.detach())
        weighted = sum(coef * loss for coef, loss in zip(self.coefficients, losses, strict=True))
        return MoEAuxLossAutoScaler.apply(weights, weighted), chosen


def router_losses(logits: Tensor, chosen: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The load-balancing loss and the z-loss of one layer, the mean over the sequences of a micro-batch.

    Of a sequence of T tokens, k of E experts for each:
    load balancing = E * sum_i f_i P_i with f_i the share of the T k places that expert i got, and P_i the mean
    probability the router gave it (Switch Transformer, arXiv:2101.03961, equations 4 to 6, for k experts);
    z = the mean over the tokens of logsumexp(logits)^2 (ST-MoE, arXiv:2202.08906, equation 5).

    Args:
        logits: [s, b, E] float32, of this process's part of each sequence.
        chosen: [s, b, E] bool.
        group: The processes that hold the other parts.

    Returns:
        [2]; their sum over the group is the losses.
    """
    tokens, experts = logits.shape[0] * group.size(), logits.shape[-1]
    places = chosen.sum(0).float()
    dist.all_reduce(places, group=group)
    shares = places / places.sum(-1, keepdim=True)
    probabilities = logits.softmax(-1).sum(0) / tokens
    balance = experts * (shares * probabilities).sum(-1)
    z = logits.logsumexp(-1).square().sum(0) / tokens
    return torch.stack([balance.mean(), z.mean()])


def take_router_losses(chunks: Iterable[nn.Module]) -> Tensor:
    """The losses of all layers and forward passes since the last call, summed: this process's share, [2] float32."""
    routers = [module for chunk in chunks for module in chunk.modules() if isinstance(module, Router)]
    taken = torch.stack([loss for router in routers for loss in router.losses]).sum(0)
    for router in routers:
        router.losses.clear()
    return taken


def is_expert(name: str) -> bool:
    """Whether a parameter of this name belongs to an expert (the router does not)."""
    return ".experts." in name


class Experts(SequentialMLP):
    """The experts of this process, one after the other: feed-forward blocks of plain linear layers."""

    def __init__(self, num_local_experts: int, config: TransformerConfig, **kwargs: Any) -> None:
        submodules = MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
        super().__init__(num_local_experts, config, submodules, **kwargs)


def experts_spec(model: ModelConfig) -> ModuleSpec:
    """The feed-forward block of a layer with experts."""
    router = partial(Router, aux_loss_coef=model.router_aux_loss_coef, z_loss_coef=model.router_z_loss_coef)
    return ModuleSpec(module=MoELayer, submodules=MoESubmodules(experts=Experts, router=router))


def experts_config(model: ModelConfig, expert_parallel: int) -> dict[str, Any]:
    """What Megatron-core's configuration says of experts."""
    if model.num_experts is None:
        return {}
    return {
        "num_moe_experts": model.num_experts,
        "moe_router_topk": model.num_experts_per_tok,
        "moe_ffn_hidden_size": model.ffn_size,
        # The softmax of the chosen logits alone is that over all, scaled to a sum of one.
        "moe_router_pre_softmax": not model.norm_topk_prob,
        "moe_router_dtype": "fp32",
        "moe_router_load_balancing_type": "none",  # the losses are `Router`'s
        "moe_token_dispatcher_type": "alltoall",
        "moe_grouped_gemm": False,
        "expert_model_parallel_size": expert_parallel,
        "expert_tensor_parallel_size": 1,
    }
