"""T5's positions: a number for each distance between a query and a key, added to the attention's scores."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.tensor_parallel import set_tensor_model_parallel_attributes
from megatron.core.transformer import TransformerConfig
from megatron.core.utils import make_tp_sharded_tensor_for_checkpoint
from torch import Tensor, nn


class RelativeBias(nn.Module):
    """The table of a stack, of which each tensor-parallel process holds its own heads.

    All layers of a stack share it, so that every stage of a pipeline with a layer of the stack holds a copy. The engine
    adds up the copies' gradients; that of the first stage stands for all in the gradient norm and in a checkpoint.
    """

    def __init__(
        self, config: TransformerConfig, buckets: int, max_distance: int, *, bidirectional: bool, is_stage_copy: bool
    ) -> None:
        """`is_stage_copy`: an earlier stage holds the table as well."""
        super().__init__()
        self.max_distance = max_distance
        self.bidirectional = bidirectional
        heads = config.num_attention_heads // config.tensor_model_parallel_size
        device = None if config.use_cpu_initialization else torch.cuda.current_device()
        self.weight = nn.Parameter(torch.empty(buckets, heads, device=device, dtype=config.params_dtype))
        set_tensor_model_parallel_attributes(self.weight, is_parallel=True, dim=1, stride=1)
        self.weight.is_stage_copy = is_stage_copy  # type: ignore[attr-defined]

    def forward(self, length: int, queries: int | None = None) -> Tensor:
        """[1, heads of this process, queries, length keys], in the type of the table; the queries are the last of the
        keys, by default all of them."""
        queries = length if queries is None else queries
        distances = torch.arange(1 - length, queries, device=self.weight.device)
        buckets = bucket_of(distances, len(self.weight), self.max_distance, self.bidirectional)
        of_distance = F.embedding(buckets, self.weight).T  # [heads, length + queries - 1]
        # Row r of the windows begins at distance 1 - length + r, the row of the query at position i at distance -i.
        return of_distance.unfold(1, length, 1).flip(1).unsqueeze(0)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Where the table lies in the global model, in Megatron-core's words."""
        key = f"{prefix}weight"
        replica = (
            int(getattr(self.weight, "is_stage_copy", False)),
            0,
            parallel_state.get_data_parallel_rank(with_context_parallel=True),
        )
        return {key: make_tp_sharded_tensor_for_checkpoint(self.weight, key, tp_axis=1, replica_id=replica)}


def bucket_of(distances: Tensor, buckets: int, max_distance: int, bidirectional: bool) -> Tensor:
    """The row of the table for each distance (position of the key minus that of the query); int64, same shape.

    As T5 has it (arXiv:1910.10683, section 2.1, and its code): half of the rows are for one distance each, the other
    half for ranges that grow in proportion up to `max_distance`, beyond which all share the last row. With
    `bidirectional` keys before and after the query each have half of all rows; else there are none after it.
    """
    after = torch.zeros_like(distances)
    if bidirectional:
        buckets //= 2
        after = (distances > 0) * buckets
        steps = distances.abs()
    else:
        steps = (-distances).clamp(min=0)
    exact = buckets // 2
    # The operations in the order of `transformers`, for a range's border must not fall otherwise by rounding.
    growth = torch.log(steps.clamp(min=1).float() / exact) / math.log(max_distance / exact) * (buckets - exact)
    ranged = (exact + growth.long()).clamp(max=buckets - 1)
    return after + torch.where(steps < exact, steps, ranged)
