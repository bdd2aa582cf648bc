"""LayerNorm and RMSNorm that know sequence parallelism and heads."""

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedStateDict
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    reduce_from_tensor_model_parallel_region,
)
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from torch import Tensor, nn


class Norm(nn.Module):
    """Normalises the last axis; fills the norm slots of Megatron-core's layer specs.

    Megatron-core's own norm without Transformer Engine refuses sequence parallelism. There each
    process sees a part of the sequence, so that its gradient is a part of the sum: `sequence_parallel`
    on the parameter asks the engine to add the parts up.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__()
        self.shape = (hidden_size,)
        self.eps = eps
        self.zero_centered = config.layernorm_zero_centered_gamma
        device = None if config.use_cpu_initialization else torch.cuda.current_device()
        options = {"device": device, "dtype": config.params_dtype}
        self.weight = nn.Parameter(torch.ones(hidden_size, **options))
        self.bias = nn.Parameter(torch.zeros(hidden_size, **options)) if config.normalization == "LayerNorm" else None
        for parameter in self.parameters():
            parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        """[..., hidden_size] -> the same shape and type; statistics are taken in float32."""
        if self.zero_centered:  # in float32 throughout: one plus a small weight is one in bf16
            bias = None if self.bias is None else self.bias.float()
            return self._normalised(x.float(), 1 + self.weight.float(), bias).type_as(x)
        return self._normalised(x, self.weight, self.bias)

    def _normalised(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if bias is None:
            return F.rms_norm(x, self.shape, weight, self.eps)
        return F.layer_norm(x, self.shape, weight, bias, self.eps)


class HeadNorm(Norm):
    """Normalises each query or key head by itself, all with the same weight (Qwen3).

    A process of the tensor group sees its own heads, so that its gradient is a part of the sum
    without sequence parallelism, too.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__(config, hidden_size, eps)
        for parameter in self.parameters():
            parameter.sequence_parallel = config.tensor_model_parallel_size > 1  # type: ignore[attr-defined]


class ProjectionNorm(nn.Module):
    """RMSNorm over all query or all key heads together, of which this process has a part (OLMo-2, arXiv:2501.00656)."""

    def __init__(self, config: TransformerConfig, width: int, eps: float) -> None:
        """
        Args:
            config: Megatron-core's.
            width: Of all heads of the model.
            eps: Added to the mean square.
        """
        super().__init__()
        self.width = width
        self.eps = eps
        self.zero_centered = config.layernorm_zero_centered_gamma
        device = None if config.use_cpu_initialization else torch.cuda.current_device()
        here = width // config.tensor_model_parallel_size
        self.weight = nn.Parameter(torch.ones(here, device=device, dtype=config.params_dtype))
        set_tensor_model_parallel_attributes(self.weight, is_parallel=True, dim=0, stride=1)

    def forward(self, x: Tensor) -> Tensor:
        """[s, b, heads of this process, head_dim] -> the same shape and type; statistics are taken in float32."""
        wide = x.flatten(2).float()
        squares = reduce_from_tensor_model_parallel_region(wide.square().sum(-1, keepdim=True))
        # The sum is every process's, and so is its gradient.
        mean = copy_to_tensor_model_parallel_region(squares) / self.width
        weight = self.weight.float() + 1 if self.zero_centered else self.weight.float()
        return (wide * torch.rsqrt(mean + self.eps) * weight).type_as(x).view_as(x)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: dict[str, Any] | None = None
    ) -> ShardedStateDict:
        """The weight is cut along its only axis."""
        state = self.state_dict(prefix="", keep_vars=True)
        return make_sharded_tensors_for_checkpoint(
            state,
            prefix,
            {"weight": 0},
            sharded_offsets,
            tp_group=parallel_state.get_tensor_model_parallel_group(),
            dp_cp_group=parallel_state.get_data_parallel_group(with_context_parallel=True),
        )


class QueryNorm(ProjectionNorm):
    """That of the queries; fills the `q_layernorm` slot."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        """`hidden_size` is the width of one head."""
        super().__init__(config, config.num_attention_heads * hidden_size, eps)


class KeyNorm(ProjectionNorm):
    """That of the keys; fills the `k_layernorm` slot."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        """`hidden_size` is the width of one head."""
        super().__init__(config, config.num_query_groups * hidden_size, eps)
