"""A decoder layer out of Megatron-core's sub-layers: where its norms stand, and how it adds up."""

from typing import Any

import torch.nn.functional as F
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer import ModuleSpec, TransformerConfig, TransformerLayer, TransformerLayerSubmodules
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from torch import Tensor

from bigtrain.config import ModelConfig
from bigtrain.models.attention import CoreAttention
from bigtrain.models.norm import Norm


class Layer(TransformerLayer):
    """Attention and feed-forward, each with a norm before it, after it or both; one after the other or side by side."""

    def __init__(
        self, config: TransformerConfig, submodules: TransformerLayerSubmodules, model: ModelConfig, **kwargs: Any
    ) -> None:
        super().__init__(config, submodules, **kwargs)
        self.side_by_side = model.parallel_residual
        has_window = model.windows[self.layer_number - 1] is not None
        self.rotary_table = None if model.rope_local_theta is None else int(has_window)
        norm = IdentityOp if model.norm_placement == "before" else Norm
        options = {"config": config, "hidden_size": config.hidden_size, "eps": config.layernorm_epsilon}
        self.post_self_attn_layernorm = norm(**options)
        self.post_mlp_layernorm = norm(**options)

    def forward(
        self,
        hidden_states: Tensor,
        rotary_pos_emb: Tensor | None = None,
        context: None = None,
        context_mask: None = None,
        padding_mask: None = None,
        **attention: Any,
    ) -> tuple[Tensor, None]:
        """
        Args:
            hidden_states: [s, b, hidden_size]; with sequence parallelism s is this process's part.
            rotary_pos_emb: Angles of :class:`bigtrain.models.rope.Rotary` or `TwoRotaries`.
            context, context_mask, padding_mask: None; Megatron-core's block has them for other layers.
            attention: What else Megatron-core's attention takes.

        Returns:
            [s, b, hidden_size], and the None that Megatron-core's block expects.
        """
        if rotary_pos_emb is not None and self.rotary_table is not None:
            rotary_pos_emb = rotary_pos_emb[self.rotary_table]
        attended = self.self_attention(self.input_layernorm(hidden_states), rotary_pos_emb=rotary_pos_emb, **attention)
        after = hidden_states + self._finished(attended, self.post_self_attn_layernorm)
        read = hidden_states if self.side_by_side else after
        fed = self.mlp(self.pre_mlp_layernorm(read))
        return after + self._finished(fed, self.post_mlp_layernorm), None

    def _finished(self, output_and_bias: tuple[Tensor, Tensor | None], norm: Any) -> Tensor:
        output, bias = output_and_bias
        output = norm(output if bias is None else output + bias)
        return F.dropout(output, self.hidden_dropout, self.training)


def self_attention(
    mask: AttnMaskType, core: Any = CoreAttention, query_norm: Any = IdentityOp, key_norm: Any = IdentityOp
) -> ModuleSpec:
    """Megatron-core's self-attention around a core of ours."""
    return ModuleSpec(
        module=SelfAttention,
        params={"attn_mask_type": mask},
        submodules=SelfAttentionSubmodules(
            linear_qkv=ColumnParallelLinear,
            core_attention=core,
            linear_proj=RowParallelLinear,
            q_layernorm=query_norm,
            k_layernorm=key_norm,
        ),
    )


def feed_forward(output: Any = RowParallelLinear) -> ModuleSpec:
    """Megatron-core's feed-forward; `output` is its second matrix."""
    return ModuleSpec(module=MLP, submodules=MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=output))
