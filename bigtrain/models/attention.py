"""Attention's core through PyTorch's scaled dot product, over a whole sequence or one that processes share."""

from contextlib import nullcontext
from typing import Any

import torch.nn.functional as F
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.enums import AttnMaskType
from torch import Tensor, nn

from bigtrain.models.context import to_heads, to_sequence
from bigtrain.models.ring import ring_attention


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
        cp_comm_type: str | None = None,
        pg_collection: Any = None,
        **_: Any,
    ) -> None:
        """`cp_comm_type` and `pg_collection.cp`, Megatron-core's words, are used where context parallel is:
        "a2a" exchanges heads, "p2p" sends keys and values around."""
        super().__init__()
        self.dropout = config.attention_dropout if attention_dropout is None else attention_dropout
        self.softmax_scale = softmax_scale
        # Without sequence parallelism Megatron's block runs on random numbers that the tensor group
        # shares, but each process has its own heads and needs its own mask.
        self.fork_random = self.dropout > 0 and not config.sequence_parallel
        self.context_group = pg_collection.cp if config.context_parallel_size > 1 else None
        self.exchanges_heads = cp_comm_type == "a2a"
        assert self.exchanges_heads or self.context_group is None or self.dropout == 0, (
            "the configuration was validated"
        )

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attention_mask: None = None, **_: Any) -> Tensor:
        """Causal attention; s are the tokens of the sequence that this process holds.

        Args:
            query: [s, b, heads, head_dim]
            key, value: [s, b, key/value heads, head_dim]; each serves heads / kv heads query heads
            attention_mask: None; the mask is causal.

        Returns:
            [s, b, heads * head_dim]
        """
        if self.context_group is None:
            out = self._whole(query, key, value)
        elif self.exchanges_heads:
            out = to_sequence(self._whole(*to_heads((query, key, value), self.context_group)), self.context_group)
        else:
            q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
            out = ring_attention(q, k, v, self.context_group, self.softmax_scale).permute(2, 0, 1, 3)
        return out.flatten(2)

    def _whole(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[s, b, heads, head_dim], where s are all tokens of the sequence."""
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
        return out.permute(2, 0, 1, 3)
