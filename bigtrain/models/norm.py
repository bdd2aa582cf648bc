"""LayerNorm and RMSNorm that know sequence parallelism."""

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer import TransformerConfig
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
        device = None if config.use_cpu_initialization else torch.cuda.current_device()
        options = {"device": device, "dtype": config.params_dtype}
        self.weight = nn.Parameter(torch.ones(hidden_size, **options))
        self.bias = nn.Parameter(torch.zeros(hidden_size, **options)) if config.normalization == "LayerNorm" else None
        for parameter in self.parameters():
            parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        """[..., hidden_size] -> the same shape and type; statistics are taken in float32."""
        if self.bias is None:
            return F.rms_norm(x, self.shape, self.weight, self.eps)
        return F.layer_norm(x, self.shape, self.weight, self.bias, self.eps)
