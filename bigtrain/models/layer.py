"""A decoder layer out of Megatron-core's sub-layers: where its norms stand, and how it adds up."""

from typing import Any

import torch.nn.functional as F
from megatron.core.models.common.embeddings.rope_utils import apply_rotary_pos_emb
from megatron.core.models.common.embeddings.yarn_rotary_pos_embedding import (
    _yarn_get_concentration_factor_from_config,
)
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


class TurnedOnce(SelfAttention):
    """Megatron-core's self-attention, which keeps keys in its cache as the rotary angles turn them. Its own keeps them
    as they were, and turns the keys of all tokens so far again for each that is made."""

    def _adjust_key_value_for_inference(
        self,
        inference_context: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        rotary_pos_emb: tuple[Tensor, Tensor] | None,
        *others: Any,
        **named: Any,
    ) -> Any:
        if inference_context is None or rotary_pos_emb is None:
            return super()._adjust_key_value_for_inference(
                inference_context, query, key, value, rotary_pos_emb, *others, **named
            )
        begin = inference_context.sequence_len_offset
        key = apply_rotary_pos_emb(
            key,
            rotary_pos_emb[1][begin : begin + len(key)],
            config=self.config,
            mscale=_yarn_get_concentration_factor_from_config(self.config),
            cp_group=self.pg_collection.cp,
        )
        query, key, value, angles, *rest = super()._adjust_key_value_for_inference(
            inference_context, query, key, value, rotary_pos_emb, *others, **named
        )
        return query, key, value, (angles[0], None), *rest


def self_attention(
    mask: AttnMaskType, core: Any = CoreAttention, query_norm: Any = IdentityOp, key_norm: Any = IdentityOp
) -> ModuleSpec:
    """Megatron-core's self-attention around a core of ours."""
    return ModuleSpec(
        module=TurnedOnce,
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
