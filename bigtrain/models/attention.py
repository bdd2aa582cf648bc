"""Attention's core through PyTorch's scaled dot product, over a whole sequence or one that processes share."""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
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
    """softmax(q k^T / sqrt(d)) v over the heads of this process; fills the `core_attention` slot.

    A soft-cap bends the scores before the softmax, cap · tanh(score / cap), which no kernel of PyTorch's does.
    """

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
        windows: Sequence[int | None] = (),
        softcap: float | None = None,
        **_: Any,
    ) -> None:
        """`windows` has for each layer of the model how many tokens a token sees at most, itself among them; none are
        given where all see all before them.

        `cp_comm_type` and `pg_collection.cp`, Megatron-core's words, are used where context parallel is:
        "a2a" exchanges heads, "p2p" sends keys and values around."""
        super().__init__()
        self.dropout = config.attention_dropout if attention_dropout is None else attention_dropout
        self.softmax_scale = softmax_scale
        self.causal = attn_mask_type == AttnMaskType.causal
        self.window = windows[layer_number - 1] if windows else None
        self.softcap = softcap
        # Without sequence parallelism Megatron's block runs on random numbers that the tensor group
        # shares, but each process has its own heads and needs its own mask.
        self.fork_random = self.dropout > 0 and not config.sequence_parallel
        self.context_group = pg_collection.cp if config.context_parallel_size > 1 else None
        self.exchanges_heads = cp_comm_type == "a2a"
        plain = self.dropout == 0 and self.window is None and self.softcap is None
        assert self.exchanges_heads or self.context_group is None or plain, "the configuration was validated"

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        attention_bias: Callable[[], Tensor] | None = None,
        packed_seq_params: PackedDocuments | None = None,
        **_: Any,
    ) -> Tensor:
        """Attention, causal where the slot's mask is; s are the tokens of the sequence that this process holds.

        With a cache the keys are those of all tokens so far, of which the queries are the last.

        Args:
            query: [s, b, heads, head_dim]
            key, value: [keys, b, key/value heads, head_dim]; each serves heads / kv heads query heads
            attention_mask: bool, to be expanded to [b, heads, queries, keys]: true where a query sees a key (which
                Megatron-core has the other way around), in place of all that a causal mask lets see. None: all keys,
                where it is not causal.
            attention_bias: Gives what is added to the scores, [1, heads, queries, keys]. It is asked here, and again
                where the core is computed again: a tensor from outside would be differentiated twice.
            packed_seq_params: Documents that do not see one another; None: a sequence is one.

        Returns:
            [s, b, heads * head_dim]
        """
        if attention_bias is not None:
            bias = self._added(attention_bias(), attention_mask)
            out = self._whole(query, key, value, None, bias)
        elif self.causal and (attention_mask is not None or query.shape[0] != key.shape[0]):
            out = self._cached(query, key, value, attention_mask)
        elif self.context_group is None:
            out = self._whole(query, key, value, packed_seq_params, attention_mask)
        elif self.exchanges_heads:
            q, k, v = to_heads((query, key, value), self.context_group)
            out = to_sequence(self._whole(q, k, v, packed_seq_params), self.context_group)
        else:
            assert packed_seq_params is None, "the configuration was validated"
            q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
            out = ring_attention(q, k, v, self.context_group, self.softmax_scale).permute(2, 0, 1, 3)
        return out.flatten(2)

    def _added(self, bias: Tensor, seen: Tensor | None) -> Tensor:
        """The bias with what is not seen taken out."""
        if self.causal:  # of a cache the queries are the last columns
            queries, keys = bias.shape[-2:]
            seen = torch.ones(queries, keys, dtype=torch.bool, device=bias.device).tril(keys - queries)
        return bias if seen is None else bias.masked_fill(~seen, -math.inf)

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

    def _cached(self, query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None) -> Tensor:
        """[queries, b, heads, head_dim]; without a mask there is one query."""
        q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        if self.window is not None and q.shape[2] == 1:
            k, v = (x[:, :, -self.window :] for x in (k, v))
            seen = None if seen is None else seen[..., -self.window :]
        elif self.window is not None and seen is not None:
            seen = seen.triu(k.shape[2] - q.shape[2] - self.window + 1)
        return self._see(q, k, v, seen).permute(2, 0, 1, 3)

    def _each(self, q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...]) -> Tensor:
        """The documents of one sequence [heads, s, head_dim] one by one: no mask is made, and no work done for one."""
        parts = zip(*(x.unsqueeze(0).split(lengths, dim=2) for x in (q, k, v)), strict=True)
        return torch.cat([self._attend(*part) for part in parts], dim=2)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attention within the window. q: [b, heads, s, head_dim]; k, v: [b, key/value heads, s, head_dim]."""
        window = self.window
        if mask is not None or window is None or q.shape[2] <= window:
            return self._see(q, k, v, mask)
        # Block by block of queries: nothing further back is seen than the block of keys before.
        out, before = [], None
        for query, key, value in zip(*(x.split(window, dim=2) for x in (q, k, v)), strict=True):
            if before is None:
                out.append(self._see(query, key, value, None))
            else:
                keys, values = (torch.cat(pair, dim=2) for pair in zip(before, (key, value), strict=True))
                mask = _band(window, q.device)[: query.shape[2], : window + query.shape[2]]
                out.append(self._see(query, keys, values, mask))
            before = key, value
        return torch.cat(out, dim=2)

    def _see(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Attention where `mask` [queries, keys], or one for each sequence, is true, or with it added to the scores;
        without one all keys are seen, or where it is causal those up to the query; a single query sees all."""
        dropout = self.dropout if self.training else 0.0
        if self.softcap is not None:
            scale = self.softmax_scale or 1 / math.sqrt(q.shape[-1])
            return _capped_attention(q, k, v, mask, scale, self.softcap, dropout)
        grouped = q.shape[1] != k.shape[1]
        if grouped and mask is not None and q.is_cuda:
            # No kernel there takes both, and without a kernel the scores would be held in memory.
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
            grouped = False
        return F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            dropout_p=dropout,
            is_causal=self.causal and mask is None and q.shape[2] > 1,
            scale=self.softmax_scale,
            enable_gqa=grouped,
        )


@lru_cache(maxsize=4)
def _band(window: int, device: torch.device) -> Tensor:
    """[window, 2 window] bool: which keys of a block and the one before it the queries of the block see."""
    query, key = torch.arange(window, device=device).unsqueeze(1) + window, torch.arange(2 * window, device=device)
    return (key <= query) & (key > query - window)


def _capped_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, cap: float, dropout: float
) -> Tensor:
    """Attention with scores below `cap`, which are held in memory; the softmax is taken in float32."""
    grouped, k, v = q.unflatten(1, (k.shape[1], -1)), k.unsqueeze(2), v.unsqueeze(2)
    scores = cap * torch.tanh((grouped @ k.transpose(-1, -2)) * (scale / cap))
    if mask is None:
        queries, keys = scores.shape[-2:]
        mask = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries)
    elif mask.ndim == 4:
        mask = mask.unsqueeze(2)
    weights = scores.masked_fill(~mask, -math.inf).softmax(-1, dtype=torch.float32).to(q.dtype)
    return (F.dropout(weights, dropout) @ v).flatten(1, 2)
