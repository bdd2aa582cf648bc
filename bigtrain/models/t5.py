"""T5: an encoder, and a decoder that attends to what the encoder made, on one pipeline.

Megatron-core's schedules know one stack of layers, and one tensor between its stages. Here a chunk of the pipeline
holds a stretch of the encoder's layers followed by the decoder's, each stack being a block of Megatron-core, and what
travels is both stacks' hidden states, one after the other along the sequence: the decoder's wait in the stages of the
encoder, the encoder's are what the stages of the decoder attend to.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.enums import ModelType
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.common.embeddings.language_model_embedding import LanguageModelEmbedding
from megatron.core.models.common.language_module.language_module import LanguageModule
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker
from megatron.core.transformer import ModuleSpec, TransformerConfig, TransformerLayer, TransformerLayerSubmodules
from megatron.core.transformer.attention import (
    CrossAttention,
    CrossAttentionSubmodules,
)
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_block import TransformerBlock, TransformerBlockSubmodules
from torch import Tensor, nn

from bigtrain.config import Config
from bigtrain.data.pair_batches import PairBatch
from bigtrain.models.attention import CoreAttention
from bigtrain.models.cached import Cache, NextPair
from bigtrain.models.gpt import transformer_config
from bigtrain.models.layer import feed_forward, self_attention
from bigtrain.models.losses import token_losses
from bigtrain.models.norm import Norm
from bigtrain.models.relative_bias import RelativeBias
from bigtrain.models.stages import stacks_per_chunk


class FeedForwardOutput(RowParallelLinear):
    """The feed-forward's second matrix, with T5's dropout before it."""

    def forward(self, input_: Tensor) -> tuple[Tensor, Tensor | None]:
        """[s, b, intermediate_size / tensor] -> [s, b, hidden_size]"""
        # Under sequence parallelism Megatron's block already draws other numbers on each process.
        return super().forward(_dropout(input_, self.config, self.training, apart=not self.config.sequence_parallel))


class EncoderAttention(CrossAttention):
    """A decoder's attention to what the encoder made, whose keys and values a cache keeps from the first time on."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        key_value_states: Tensor | None = None,
        inference_context: Cache | None = None,
        **_: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """[T, b, hidden_size], and the bias that it does not have.

        Args:
            hidden_states: [T, b, hidden_size]
            attention_mask: bool [b, 1, 1, S], true where the encoder has read text; None: everywhere.
            key_value_states: [S, b, hidden_size], of the encoder; not looked at where the cache has what comes of it.
            inference_context: The cache, by Megatron-core's name.
        """
        if inference_context is None:
            return super().forward(hidden_states, attention_mask, key_value_states)
        kept = inference_context.of_encoder
        if self.layer_number not in kept:
            _, *kept[self.layer_number] = self.get_query_key_value_tensors(hidden_states, key_value_states)
        query, _ = self.linear_q(hidden_states)
        query = query.unflatten(-1, (-1, self.hidden_size_per_attention_head))
        return self.linear_proj(self.core_attention(query, *kept[self.layer_number], attention_mask))


class Stack(TransformerBlock):
    """Layers of the encoder or the decoder: those that lie in one chunk of the pipeline, one at least."""

    def __init__(
        self, transformer: TransformerConfig, config: Config, stack: int, chunk: int, vp_stage: int | None
    ) -> None:
        """`transformer`: That of the whole model. `stack`: 0 is the encoder, 1 the decoder. `chunk`: Its number in the
        order of the model."""
        layers = [of_chunk[stack] for of_chunk in stacks_per_chunk(config)]
        super().__init__(
            _stack_config(transformer, layers),
            TransformerBlockSubmodules([layer_spec(is_decoder=stack == 1)] * layers[chunk], layer_norm=Norm),
            post_process=not any(layers[chunk + 1 :]),  # the last of the stack's chunks holds its final norm
            vp_stage=vp_stage,
        )
        first = next(number for number, count in enumerate(layers) if count)
        self.relative_attention_bias = RelativeBias(
            self.config,
            config.model.relative_attention_num_buckets,
            config.model.relative_attention_max_distance,
            bidirectional=stack == 0,
            is_stage_copy=(chunk - first) % config.parallel.pipeline != 0,
        )

    def forward(
        self,
        hidden_states: Tensor,
        length: int,
        seen: Tensor | None = None,
        context: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Through the layers, and the final norm if it is here.

        Args:
            hidden_states: [s, b, hidden_size]
            length: Tokens of a whole sequence, of which s are here.
            seen: bool [b, 1, 1, encoder's tokens], true where there is text in the encoder's input; None: everywhere.
            context: [encoder's s, b, hidden_size], of which only a decoder knows.
            cache: Of a decoder that has read all before the `length` tokens.
        """
        so_far = 0 if cache is None else cache.sequence_len_offset
        hidden_states = super().forward(
            hidden_states,
            attention_mask=seen if context is None else None,
            context=context,
            context_mask=seen,
            attention_bias=partial(self.relative_attention_bias, so_far + length, length),
            inference_context=cache,
        )
        if self.final_layernorm is None:
            return hidden_states
        return _dropout(hidden_states, self.config, self.training, apart=self.config.sequence_parallel)


class T5(LanguageModule):
    """One chunk of the model. Fills the place of Megatron-core's T5, which knows no pipeline."""

    def __init__(self, transformer: TransformerConfig, config: Config, vp_stage: int | None) -> None:
        super().__init__(transformer)
        model, pipeline = config.model, config.parallel.pipeline
        self.model_type = ModelType.encoder_or_decoder  # what Megatron-core's schedules know
        self.vp_stage = vp_stage
        self.share_embeddings_and_output_weights = model.tie_word_embeddings
        self.pre_process = parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=vp_stage)
        self.post_process = parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=vp_stage)
        self.input_tensor: Tensor | None = None
        if self.pre_process:
            self.embedding = LanguageModelEmbedding(transformer, model.vocab_size, 0, position_embedding_type="none")
        chunk = parallel_state.get_pipeline_model_parallel_rank() + (vp_stage or 0) * pipeline
        stacks = enumerate(stacks_per_chunk(config)[chunk])
        self.encoder, self.decoder = (
            Stack(transformer, config, i, chunk, vp_stage) if layers else None for i, layers in stacks
        )
        if self.post_process:
            self.output_layer = ColumnParallelLinear(
                model.hidden_size,
                model.vocab_size,
                config=transformer,
                init_method=transformer.init_method,
                bias=False,
                gather_output=False,
                skip_weight_param_allocation=self.pre_process and model.tie_word_embeddings,
            )
        if self.pre_process or self.post_process:
            self.setup_embeddings_and_output_layer()

    def set_input_tensor(self, tensor: Tensor | list[Tensor]) -> None:
        """What the chunk before has made, [both stacks' s, b, hidden_size]; Megatron-core's schedules call it."""
        self.input_tensor = tensor[0] if isinstance(tensor, list) else tensor

    def losses(self, batch: PairBatch) -> Tensor:
        """Those of the batch's targets, float32 [b, T]; both stacks' hidden states before the last stage."""
        return self(batch.input_ids, batch.decoder_input_ids, batch.attention_mask, batch.labels)

    def predictions(self, batch: PairBatch) -> Tensor:
        """The decoder's logits, [b, T, vocab_size / tensor]; both stacks' hidden states before the last stage."""
        return self(batch.input_ids, batch.decoder_input_ids, batch.attention_mask)

    def next_logits(self, batch: NextPair) -> Tensor:
        """Those after the last column, [b, vocab_size]; before the last stage hidden states, as :meth:`forward`."""
        said = self(batch.input_ids, batch.decoder_input_ids, batch.attention_mask, cache=batch.cache)
        return said[:, -1] if self.post_process else said

    def forward(
        self,
        input_ids: Tensor,
        decoder_input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """The decoder's losses from the last chunk, what the next one takes from all others.

        Args:
            input_ids: [b, S] int64, of the encoder.
            decoder_input_ids: [b, T] int64. Padding stands at the end, where nothing before it sees it.
            attention_mask: [b, S] bool, true where there is text in `input_ids`; None: everywhere.
            labels: [b, T] int64; without them the last chunk gives logits.
            cache: What the decoder has kept of the tokens before these T, and once there are some of the encoder's,
                which then reads nothing: S is 0.

        Returns:
            [b, T] float32 losses, [b, T, vocab_size / tensor] logits (with a cache [b, T, vocab_size]) or
            [(S + T) / tensor, b, hidden_size].
        """
        lengths = input_ids.shape[1], decoder_input_ids.shape[1]
        if self.pre_process:
            encoded, decoded = (self.embedding(ids, None) for ids in (input_ids, decoder_input_ids))
        else:
            assert self.input_tensor is not None, "the schedule has set it"
            parts = self.config.tensor_model_parallel_size if self.config.sequence_parallel else 1
            encoded, decoded = self.input_tensor.split([length // parts for length in lengths])
        seen = None if attention_mask is None else attention_mask[:, None, None]
        if self.encoder is not None and lengths[0]:
            encoded = self.encoder(encoded, lengths[0], seen)
        if self.decoder is not None:
            decoded = self.decoder(decoded, lengths[1], seen, encoded, cache)
        if not self.post_process:
            return torch.cat([encoded, decoded])
        weight = None
        if self.share_embeddings_and_output_weights:
            weight = self.shared_embedding_or_output_weight()
            decoded = decoded * self.config.hidden_size**-0.5  # as the embeddings are large (T5's code)
        logits, _ = self.output_layer(decoded, weight=weight, runtime_gather_output=cache is not None or None)
        if labels is None:
            return logits.transpose(0, 1)
        return token_losses(labels, logits, self.config.tensor_model_parallel_size)


def build_t5(config: Config) -> list[T5]:
    """This process's part of the model: one :class:`T5` per chunk of layers, as :func:`bigtrain.models.gpt.build_gpt`.

    Chunks of one process share one table of a stack's relative positions.
    """
    transformer, virtual = transformer_config(config), config.parallel.virtual_pipeline
    chunks = [T5(transformer, config, stage if virtual > 1 else None) for stage in range(virtual)]
    for stacks in ([chunk.encoder for chunk in chunks], [chunk.decoder for chunk in chunks]):
        tables = [stack.relative_attention_bias for stack in stacks if stack is not None]
        for table in tables[1:]:
            table.weight = tables[0].weight
    return chunks


def relative_tables(chunks: Sequence[T5]) -> list[nn.Parameter | None]:
    """The encoder's and the decoder's table of relative positions, where this process holds a layer of theirs."""
    stacks = [chunk.encoder for chunk in chunks], [chunk.decoder for chunk in chunks]
    held = [[stack.relative_attention_bias.weight for stack in of_kind if stack is not None] for of_kind in stacks]
    return [tables[0] if tables else None for tables in held]


def _stack_config(transformer: TransformerConfig, layers: Sequence[int]) -> TransformerConfig:
    """That of a stack of which so many layers lie in each chunk.

    It numbers them, and so names them, as if the stack had the pipeline for itself.
    """
    layout = [["decoder"] * count for count in layers]
    layout[0].insert(0, "embedding")
    layout[-1].append("loss")
    return replace(
        transformer,
        num_layers=sum(layers),
        pipeline_model_parallel_layout=layout if transformer.pipeline_model_parallel_size > 1 else None,
        softmax_scale=1.0,  # scores are not scaled down, which the initial weights make up for
    )


def layer_spec(*, is_decoder: bool) -> ModuleSpec:
    """One layer with its norms before the sub-layers; a decoder's attends to the encoder between its own two."""
    parts = TransformerLayerSubmodules(
        input_layernorm=Norm,
        self_attention=self_attention(AttnMaskType.causal if is_decoder else AttnMaskType.padding),
        self_attn_bda=get_bias_dropout_add,
        pre_mlp_layernorm=Norm,
        mlp=feed_forward(FeedForwardOutput),
        mlp_bda=get_bias_dropout_add,
    )
    if is_decoder:
        parts.pre_cross_attn_layernorm = Norm
        parts.cross_attention = ModuleSpec(
            module=EncoderAttention,
            params={"attn_mask_type": AttnMaskType.padding},
            submodules=CrossAttentionSubmodules(
                linear_q=ColumnParallelLinear,
                linear_kv=ColumnParallelLinear,
                core_attention=CoreAttention,
                linear_proj=RowParallelLinear,
            ),
        )
        parts.cross_attn_bda = get_bias_dropout_add
    return ModuleSpec(module=TransformerLayer, submodules=parts)


def _dropout(x: Tensor, config: TransformerConfig, training: bool, *, apart: bool) -> Tensor:
    """Dropout; `apart` where each process of the tensor group holds another part of `x` and needs its own mask."""
    if not training or not config.hidden_dropout:
        return x
    with get_cuda_rng_tracker().fork() if apart else nullcontext():
        return F.dropout(x, config.hidden_dropout)
