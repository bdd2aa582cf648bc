"""BERT: a transformer that reads from both sides, out of Megatron-core's parts (arXiv:1810.04805); with rotary
positions it is a RoFormer (arXiv:2104.09864).

Names and places are those of Megatron-core's own `BertModel`. That one cannot be had under sequence parallelism without
Transformer Engine, has its norms before the sub-layers, and none after the embedding.
"""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.enums import ModelType
from megatron.core.models.common.embeddings.language_model_embedding import LanguageModelEmbedding
from megatron.core.models.common.language_module.language_module import LanguageModule
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    gather_from_sequence_parallel_region,
)
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker
from megatron.core.transformer import ModuleSpec, TransformerConfig, TransformerLayer, TransformerLayerSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.transformer_block import (
    TransformerBlock,
    TransformerBlockSubmodules,
    get_num_layers_to_build,
)
from torch import Tensor, nn

from bigtrain.config import Config
from bigtrain.data.encoder import EncoderBatch, MaskedBatch
from bigtrain.models.gpt import transformer_config
from bigtrain.models.layer import feed_forward, self_attention
from bigtrain.models.losses import token_losses
from bigtrain.models.norm import Norm
from bigtrain.models.rope import rotary


class Bert(LanguageModule):
    """The layers of one pipeline stage; on the first the embedding, on the last the heads."""

    def __init__(self, config: TransformerConfig, options: Config, vp_stage: int | None) -> None:
        super().__init__(config)
        model = options.model
        self.vp_stage = vp_stage
        self.model_type = ModelType.encoder_or_decoder
        self.pre_process = parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=vp_stage)
        self.post_process = parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=vp_stage)
        self.share_embeddings_and_output_weights = model.tie_word_embeddings
        if self.pre_process:
            self.embedding = Embedding(
                config,
                vocab_size=model.vocab_size,
                max_sequence_length=model.max_position_embeddings,
                num_tokentypes=model.type_vocab_size,
                position_offset=model.position_offset,
                position_embedding_type="none" if model.position_embedding == "rope" else "learned_absolute",
            )
        self.rotary_pos_emb: Any = None
        if model.position_embedding == "rope":
            self.rotary_pos_emb = rotary(
                model, use_cpu_initialization=config.use_cpu_initialization, cp_group=self.pg_collection.cp
            )
        layers = get_num_layers_to_build(config, vp_stage=vp_stage)
        self.encoder = TransformerBlock(
            config,
            TransformerBlockSubmodules(layer_specs=[layer_spec(config)] * layers, layer_norm=None),
            pre_process=self.pre_process,
            post_process=self.post_process,
            vp_stage=vp_stage,
        )
        self.pooler: Pooler | None = None
        if self.post_process:
            self._build_heads(_whole_sequences(config), options)
        if self.pre_process or self.post_process:
            self.setup_embeddings_and_output_layer()

    def _build_heads(self, config: TransformerConfig, options: Config) -> None:
        model = options.model
        self.lm_head = Transform(config)
        self.output_layer = ColumnParallelLinear(
            model.hidden_size,
            model.vocab_size,
            config=config,
            init_method=config.init_method,
            bias=True,
            gather_output=False,
            skip_weight_param_allocation=self.pre_process and model.tie_word_embeddings,
        )
        if model.add_pooling_layer:
            self.pooler = Pooler(config)
            self.binary_head = nn.Linear(model.hidden_size, 2)

    def set_input_tensor(self, tensor: Tensor | list[Tensor]) -> None:
        """What the stage before hands on; called by the schedule."""
        self.encoder.set_input_tensor(tensor[0] if isinstance(tensor, list) else tensor)

    def hidden_states(self, batch: EncoderBatch) -> Tensor:
        """Of the last layer of this chunk: [s, b, hidden_size]; of any but the model's last, with sequence parallelism,
        this process's part of s."""
        embedded = self.embedding(batch.input_ids, batch.token_type_ids) if self.pre_process else None
        mask = None if batch.attention_mask is None else batch.attention_mask[:, None, None]
        angles = None if self.rotary_pos_emb is None else self.rotary_pos_emb(batch.input_ids.shape[1])
        hidden = self.encoder(hidden_states=embedded, attention_mask=mask, rotary_pos_emb=angles)
        if self.post_process and self.config.sequence_parallel:
            hidden = gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=False)
        return hidden

    def losses(self, batch: MaskedBatch) -> Tensor:
        """Cross entropy at every token that is a target, float32 [b, s], and with a sentence objective that of the
        segments in a last column; hidden states before the last stage."""
        hidden = self.hidden_states(batch)
        if not self.post_process:
            return hidden
        length = batch.input_ids.shape[1]
        chosen = batch.loss_mask[:, :length] > 0  # for the others, the most, there is no need of logits
        logits = self._logits(hidden.transpose(0, 1)[chosen][:, None])
        labels = batch.labels[:, :length][chosen][None]
        of_targets = token_losses(labels, logits, self.config.tensor_model_parallel_size)
        of_tokens = of_targets.new_zeros(chosen.shape).masked_scatter(chosen, of_targets)
        if self.pooler is None:
            return of_tokens
        segment_logits = self.binary_head(self.pooler(hidden[0]))
        of_segments = F.cross_entropy(segment_logits.float(), batch.labels[:, length], reduction="none")
        return torch.cat([of_tokens, of_segments[:, None]], dim=1)

    def predictions(self, batch: EncoderBatch) -> Tensor:
        """The logits of every token, [b, s, vocab_size / tensor]; hidden states before the last stage."""
        hidden = self.hidden_states(batch)
        return self._logits(hidden).transpose(0, 1) if self.post_process else hidden

    def _logits(self, hidden: Tensor) -> Tensor:
        weight = self.shared_embedding_or_output_weight() if self.share_embeddings_and_output_weights else None
        logits, _ = self.output_layer(self.lm_head(hidden), weight=weight)
        return logits


def build_bert(config: Config) -> list[Bert]:
    """This process's part of the model, see :func:`bigtrain.models.build.build_model`."""
    transformer = transformer_config(config)
    virtual = config.parallel.virtual_pipeline
    return [Bert(transformer, config, stage if virtual > 1 else None) for stage in range(virtual)]


class Embedding(LanguageModelEmbedding):
    """Tokens, learned positions and segments, summed, normalised, and only then dropped out."""

    def __init__(self, config: TransformerConfig, *, position_offset: int, **options: Any) -> None:
        super().__init__(config, **options)
        self.position_offset = position_offset
        self.embedding_dropout = nn.Identity()  # Megatron-core's comes before the norm
        self.layer_norm = Norm(config, config.hidden_size, eps=config.layernorm_epsilon)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        """[b, s] each -> [s, b, hidden_size], with sequence parallelism this process's part of s."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device) + self.position_offset
        x = self.layer_norm(super().forward(input_ids, positions.expand_as(input_ids), token_type_ids))
        with get_cuda_rng_tracker().fork() if self.config.sequence_parallel else nullcontext():
            return F.dropout(x, self.config.hidden_dropout, self.training)


class AddAndNorm(nn.Module):
    """norm(residual + dropout(x + bias)); fills the slots in which Megatron-core's layer adds the residual."""

    def __init__(self, config: TransformerConfig, **_: Any) -> None:
        super().__init__()
        self.norm = Norm(config, config.hidden_size, eps=config.layernorm_epsilon)

    def forward(self, training: bool, fused: bool) -> Callable[[tuple[Tensor, Tensor | None], Tensor, float], Tensor]:
        """The function that Megatron-core's layer calls with (x, bias), residual and the probability to drop."""

        def add(x_with_bias: tuple[Tensor, Tensor | None], residual: Tensor, probability: float) -> Tensor:
            x, bias = x_with_bias
            return self.norm(residual + F.dropout(x if bias is None else x + bias, probability, training))

        return add


class Transform(nn.Module):
    """norm(act(dense(x))), before the output layer."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.layer_norm = Norm(config, config.hidden_size, eps=config.layernorm_epsilon)
        self.act = config.activation_func

    def forward(self, x: Tensor) -> Tensor:
        """[..., hidden_size] -> the same shape."""
        return self.layer_norm(self.act(self.dense(x)))


class Pooler(nn.Module):
    """tanh(dense(x)) of the first token, which stands for the whole sequence."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """[b, hidden_size] of the first tokens -> the same shape."""
        return torch.tanh(self.dense(x))


def _whole_sequences(config: TransformerConfig) -> TransformerConfig:
    """For the heads: every process of the tensor group has all tokens, and none a part of a gradient."""
    changed = copy.copy(config)
    changed.sequence_parallel = False
    return changed


def layer_spec(config: TransformerConfig) -> ModuleSpec:
    """One layer with its norms after the residual is added."""
    add_and_norm = ModuleSpec(module=AddAndNorm, params={"config": config})
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=IdentityOp,
            self_attention=self_attention(AttnMaskType.padding),
            self_attn_bda=add_and_norm,
            pre_mlp_layernorm=IdentityOp,
            mlp=feed_forward(),
            mlp_bda=add_and_norm,
        ),
    )
