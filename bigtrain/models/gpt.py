"""GPT: decoder-only transformers from GPT-2 to Gemma-3, by configuration."""

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer import ModuleSpec, TransformerConfig, TransformerLayerSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from torch import Tensor, nn

from bigtrain.config import Config, ModelConfig, exchanges_heads
from bigtrain.data.loader import CausalBatch
from bigtrain.models.attention import CoreAttention, PackedDocuments
from bigtrain.models.cached import NextTokens
from bigtrain.models.experts import experts_config, experts_spec
from bigtrain.models.layer import Layer, feed_forward, self_attention
from bigtrain.models.losses import token_losses
from bigtrain.models.norm import HeadNorm, KeyNorm, Norm, QueryNorm
from bigtrain.models.rope import attention_factor, rotary
from bigtrain.models.stages import layers_per_chunk

ACTIVATIONS = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
}
QK_NORMS = {"none": (IdentityOp, IdentityOp), "head": (HeadNorm, HeadNorm), "projection": (QueryNorm, KeyNorm)}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class GPT(GPTModel):
    """Megatron-core's GPT with what some families do to embeddings, positions and logits, and a loss that does not pay
    for a split vocabulary where there is none."""

    def __init__(
        self, config: TransformerConfig, spec: TransformerBlockSubmodules, model: ModelConfig, **kwargs: Any
    ) -> None:
        super().__init__(config, spec, **kwargs)
        if model.position_embedding == "rope":
            self.rotary_pos_emb = rotary(
                model, use_cpu_initialization=config.use_cpu_initialization, cp_group=self.pg_collection.cp
            )
        if model.scale_embeddings and self.pre_process:
            self.embedding.register_forward_hook(partial(_scale, factor=math.sqrt(model.hidden_size)))
        if model.final_logit_softcapping is not None and self.post_process:
            self.output_layer.register_forward_hook(partial(_cap, cap=model.final_logit_softcapping))

    def losses(self, batch: CausalBatch) -> Tensor:
        """Those of the batch's targets, float32 [b, s]; hidden states before the last stage."""
        return self(
            batch.input_ids,
            batch.position_ids,
            None,
            labels=batch.labels,
            packed_seq_params=_documents(batch),
        )

    def predictions(self, batch: CausalBatch) -> Tensor:
        """The logits of every next token, [b, s, vocab_size / tensor]; hidden states before the last stage."""
        return self(batch.input_ids, batch.position_ids, None, packed_seq_params=_documents(batch))

    def next_logits(self, batch: NextTokens) -> Tensor:
        """Those after the last column, [b, vocab_size]; hidden states before the last stage."""
        said = self(
            batch.input_ids,
            batch.position_ids,
            batch.attention_mask,
            inference_context=batch.cache,
            runtime_gather_output=True,
        )
        return said[:, -1] if self.post_process else said

    def compute_language_model_loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        """See :func:`bigtrain.models.losses.token_losses`."""
        return token_losses(labels, logits, self.config.tensor_model_parallel_size)


def _documents(batch: CausalBatch) -> PackedDocuments | None:
    return None if batch.documents is None else PackedDocuments(batch.documents)


def _scale(module: nn.Module, args: Any, embedded: Tensor, factor: float) -> Tensor:
    return embedded * embedded.new_tensor(factor)  # rounded to the type, as in transformers


def _cap(module: nn.Module, args: Any, output: tuple[Tensor, None], cap: float) -> tuple[Tensor, None]:
    """Logits, and the bias that an output layer does not have."""
    return cap * torch.tanh(output[0].float() / cap), output[1]


def build_gpt(config: Config) -> list[GPT]:
    """This process's part of the model: one :class:`GPT` per chunk of layers.

    The process groups must exist. Weights are allocated on the process's device, in the type of
    `training.precision`, and hold nothing yet: see :mod:`bigtrain.models.initialize`.
    """
    transformer = transformer_config(config)
    virtual = config.parallel.virtual_pipeline if config.parallel.virtual_pipeline > 1 else None
    return [_chunk(config, transformer, None if virtual is None else stage) for stage in range(virtual or 1)]


def _chunk(config: Config, transformer: TransformerConfig, vp_stage: int | None) -> GPT:
    model = config.model
    layers = get_num_layers_to_build(transformer, vp_stage=vp_stage)
    return GPT(
        transformer,
        TransformerBlockSubmodules(layer_specs=[layer_spec(model)] * layers, layer_norm=Norm),
        model,
        vocab_size=model.vocab_size,
        max_sequence_length=model.max_position_embeddings,
        pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=vp_stage),
        post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=vp_stage),
        share_embeddings_and_output_weights=model.tie_word_embeddings,
        position_embedding_type="rope" if model.position_embedding == "rope" else "learned_absolute",
        parallel_output=True,
        vp_stage=vp_stage,
    )


def layer_spec(model: ModelConfig) -> ModuleSpec:
    """One decoder layer: Megatron-core's parallel linear layers around our norms and attention."""
    norm_before = IdentityOp if model.norm_placement == "after" else Norm
    query_norm, key_norm = QK_NORMS[model.qk_norm]
    core = partial(CoreAttention, windows=model.windows, softcap=model.attn_logit_softcapping)
    return ModuleSpec(
        module=Layer,
        params={"model": model},
        submodules=TransformerLayerSubmodules(
            input_layernorm=norm_before,
            self_attention=self_attention(AttnMaskType.causal, core, query_norm, key_norm),
            pre_mlp_layernorm=norm_before,
            mlp=feed_forward() if model.num_experts is None else experts_spec(model),
        ),
    )


def transformer_config(config: Config) -> TransformerConfig:
    """Our configuration in Megatron-core's words. Fused kernels that need more than PyTorch are off."""
    model, parallel = config.model, config.parallel
    dtype = DTYPES[config.training.precision]
    transformer = TransformerConfig(
        num_layers=model.num_hidden_layers + model.decoder_layers,
        hidden_size=model.hidden_size,
        num_attention_heads=model.num_attention_heads,
        num_query_groups=model.kv_heads,
        kv_channels=model.head_size,
        ffn_hidden_size=model.ffn_size,
        gated_linear_unit=model.gated_mlp,
        activation_func=ACTIVATIONS[model.hidden_act],
        add_bias_linear=model.linear_bias,
        add_qkv_bias=model.qkv_bias,
        normalization={"rmsnorm": "RMSNorm", "layernorm": "LayerNorm"}[model.normalization],
        layernorm_epsilon=model.norm_eps,
        qk_layernorm=model.qk_norm != "none",
        layernorm_zero_centered_gamma=model.zero_centered_norm,
        softmax_scale=None if model.query_pre_attn_scalar is None else model.query_pre_attn_scalar**-0.5,
        hidden_dropout=model.hidden_dropout,
        attention_dropout=model.attention_dropout,
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        virtual_pipeline_model_parallel_size=parallel.virtual_pipeline if parallel.virtual_pipeline > 1 else None,
        context_parallel_size=parallel.context,
        cp_comm_type="a2a" if exchanges_heads(config) else "p2p",
        pipeline_model_parallel_layout=_pipeline_layout(config),
        sequence_parallel=parallel.sequence and parallel.tensor > 1,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        # `initialize` draws the weights, so that they do not depend on the layout; Megatron still has to
        # mark which parameters are split, and does so only where it believes that it initialises them.
        perform_initialization=True,
        init_method=_leave,
        output_layer_init_method=_leave,
        use_cpu_initialization=not torch.cuda.is_available(),
        deallocate_pipeline_outputs=True,
        batch_p2p_comm=False,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        gradient_accumulation_fusion=False,
        persist_layer_norm=False,
        apply_rope_fusion=False,
        **experts_config(model, parallel.expert),
        **_recompute(config.training.recompute),
    )
    if (factor := attention_factor(model)) != 1:
        # Megatron-core takes it from these, as (0.1 mscale ln(scale) + 1) / (0.1 mscale_all_dim ln(scale) + 1).
        transformer.yarn_rotary_scaling_factor = math.e
        transformer.yarn_mscale, transformer.yarn_mscale_all_dim = (factor - 1) / 0.1, 0.0
    return transformer


def _pipeline_layout(config: Config) -> list[list[str]] | None:
    """What each chunk of the pipeline holds, in Megatron-core's words."""
    if config.parallel.pipeline == 1:
        return None
    layout = [["decoder"] * layers for layers in layers_per_chunk(config)]
    layout[0].insert(0, "embedding")
    layout[-1].append("loss")
    return layout


def _leave(weight: Tensor) -> Tensor:
    return weight


def _recompute(choice: str) -> dict[str, Any]:
    if choice == "none":
        return {}
    if choice == "selective":
        return {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]}
    return {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
