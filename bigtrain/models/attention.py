"""Attention's core through PyTorch's scaled dot product."""

from contextlib import nullcontext
from typing import Any

import torch.nn.functional as F
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.enums import AttnMaskType
from torch import Tensor, nn


class CoreAttention(nn.Module):
    """softmax(q k^T / sqrt(d)) v over the heads of this process; fills the `core_attention` slot."""

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        **_: Any,
    ) -> None:
        super().__init__()
        self.dropout = config.attention_dropout if attention_dropout is None else attention_dropout
        self.softmax_scale = softmax_scale
        # Without sequence parallelism Megatron's block runs on random numbers that the tensor group
        # shares, but each process has its own heads and needs its own mask.
        self.fork_random = self.dropout > 0 and not config.sequence_parallel

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attention_mask: None = None, **_: Any) -> Tensor:
        """Causal attention.

        Args:
            query: [s, b, heads, head_dim]
            key, value: [s, b, key/value heads, head_dim]; each serves heads / kv heads query heads
            attention_mask: None; the mask is causal.

        Returns:
            [s, b, heads * head_dim]
        """
        s, b, heads, head_dim = query.shape
        q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        with get_cuda_rng_tracker().fork() if self.fork_random and self.training else nullcontext():
            out = F.scaled_dot_product_attention(
                q,
                k,
                v,
                dropout_p=self.dropout if self.training else 0.0,
                is_causal=True,
                scale=self.softmax_scale,
                enable_gqa=q.shape[1] != k.shape[1],
            )
        return out.permute(2, 0, 1, 3).reshape(s, b, heads * head_dim)
