"""Attention's core through PyTorch's scaled dot product, over a whole sequence or one that processes share."""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.enums import AttnMaskType
from torch import Tensor, nn

from bigtrain.models.context import to_heads, to_sequence
from bigtrain.models.ring import ring_attention


@dataclass(frozen=True)
class PackedDocuments:
    """Documents that lie side by side in a sample and do not see one another.

    Megatron-core hands it down to the attention as its `packed_seq_params`, and reads of it what its own class has.
    """

    lengths: tuple[tuple[int, ...], ...]
    """Tokens of each document of each sequence, of whole sequences also where processes share them."""
    qkv_format: str = "sbhd"
    cp_group: None = None

    @property
    def max_seqlen_q(self) -> int:
        """For as many positions Megatron-core makes rotary angles. They count on through a sample's documents:
        only differences of positions matter to them."""
        return sum(self.lengths[0])

    max_seqlen_kv = max_seqlen_q


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
        self.causal = attn_mask_type == AttnMaskType.causal
        # Without sequence parallelism Megatron's block runs on random numbers that the tensor group
        # shares, but each process has its own heads and needs its own mask.
        self.fork_random = self.dropout > 0 and not config.sequence_parallel
        self.context_group = pg_collection.cp if config.context_parallel_size > 1 else None
        self.exchanges_heads = cp_comm_type == "a2a"
        assert self.exchanges_heads or self.context_group is None or self.dropout == 0, (
            "the configuration was validated"
        )

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        packed_seq_params: PackedDocuments | None = None,
        **_: Any,
    ) -> Tensor:
        """Attention, causal where the slot's mask is; s are the tokens of the sequence that this process holds.

        Args:
            query: [s, b, heads, head_dim]
            key, value: [s, b, key/value heads, head_dim]; each serves heads / kv heads query heads
            attention_mask: bool, to be expanded to [b, heads, queries, keys]: true where a query sees a key (which
                Megatron-core has the other way around); None: all keys, where it is not causal. Not with a causal one.
            packed_seq_params: Documents that do not see one another; None: a sequence is one.

        Returns:
            [s, b, heads * head_dim]
        """
        if self.context_group is None:
            out = self._whole(query, key, value, packed_seq_params, attention_mask)
        elif self.exchanges_heads:
            q, k, v = to_heads((query, key, value), self.context_group)
            out = to_sequence(self._whole(q, k, v, packed_seq_params), self.context_group)
        else:
            assert packed_seq_params is None, "the configuration was validated"
            q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
            out = ring_attention(q, k, v, self.context_group, self.softmax_scale).permute(2, 0, 1, 3)
        return out.flatten(2)

    def _whole(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        documents: PackedDocuments | None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """[s, b, heads, head_dim], where s are all tokens of the sequence."""
        q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        with get_cuda_rng_tracker().fork() if self.fork_random and self.training else nullcontext():
            if documents is None:
                out = self._attend(q, k, v, attention_mask)
            else:
                out = torch.cat([self._each(*row) for row in zip(q, k, v, documents.lengths, strict=True)])
        return out.permute(2, 0, 1, 3)

    def _each(self, q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...]) -> Tensor:
        """The documents of one sequence [heads, s, head_dim] one by one: no mask is made, and no work done for one."""
        parts = zip(*(x.unsqueeze(0).split(lengths, dim=2) for x in (q, k, v)), strict=True)
        return torch.cat([self._attend(*part) for part in parts], dim=2)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=attention_mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=self.causal,
            scale=self.softmax_scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )
