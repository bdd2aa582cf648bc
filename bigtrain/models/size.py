"""How large a model is and how much it computes, from its configuration alone: no torch, no weights.

Of a mixture of experts, memory holds all experts and a token meets the router and `num_experts_per_tok` of them.
"""

from bigtrain.config.schema import ModelConfig


def parameter_count(model: ModelConfig) -> int:
    """Trainable parameters, exactly: what `sum(p.numel())` gives on one process, tied weights once."""
    hidden = model.hidden_size
    experts = (model.num_experts or 1) * _feed_forward(model) + _router(model)
    matrices = model.num_hidden_layers * (_attention(model) + experts) + model.vocab_size * hidden
    if not model.tie_word_embeddings:
        matrices += model.vocab_size * hidden
    if model.position_embedding == "learned":
        matrices += model.max_position_embeddings * hidden
    vectors = _layer_biases(model) + _layer_norms(model)
    return matrices + model.num_hidden_layers * vectors + _norm(model, hidden)


def flops_per_token(model: ModelConfig, sequence_length: int) -> float:
    """Model FLOPs to train on one token, forward and backward.

    The convention of PaLM's appendix B (arXiv:2204.02311): 6 N + 12 L H Q T, a multiplication and an
    addition counted as two. N are the weights that multiply: every matrix of the blocks and the output
    layer (tied or not), but neither embeddings, which are looked up, nor norms and biases; of experts
    those that a token meets. The second term is
    attention's scores and weighted sum over all T = `sequence_length` positions: the causal half that a good
    kernel leaves out is counted all the same, as PaLM does. In a layer with a sliding window, T is its size, if that
    is less. Recomputed activations are not counted.

    Args:
        model: The shape; L is its `num_hidden_layers`, H its `num_attention_heads`, Q its head size.
        sequence_length: Tokens per sequence.
    """
    return model.num_hidden_layers * layer_flops_per_token(model, sequence_length) + output_flops_per_token(model)


def layer_flops_per_token(model: ModelConfig, sequence_length: int) -> float:
    """One block's part of :func:`flops_per_token`, the mean over the blocks."""
    met = (model.num_experts_per_tok if model.num_experts else 1) * _feed_forward(model) + _router(model)
    seen = [min(window or sequence_length, sequence_length) for window in model.windows]
    scores = model.num_attention_heads * model.head_size * sum(seen) / len(seen)
    return 6.0 * (_attention(model) + met) + 12.0 * scores


def output_flops_per_token(model: ModelConfig) -> float:
    """The output layer's part of :func:`flops_per_token`."""
    return 6.0 * model.vocab_size * model.hidden_size


def _attention(model: ModelConfig) -> int:
    """Elements of one block's query, key, value and output matrices."""
    return model.hidden_size * (2 * model.num_attention_heads + 2 * model.kv_heads) * model.head_size


def _feed_forward(model: ModelConfig) -> int:
    """Elements of the matrices of one feed-forward, or of one expert."""
    return model.hidden_size * (3 if model.gated_mlp else 2) * model.ffn_size


def _router(model: ModelConfig) -> int:
    return model.hidden_size * (model.num_experts or 0)


def _layer_biases(model: ModelConfig) -> int:
    qkv = (model.num_attention_heads + 2 * model.kv_heads) * model.head_size
    if model.linear_bias:
        return qkv + model.hidden_size + (2 if model.gated_mlp else 1) * model.ffn_size + model.hidden_size
    return qkv if model.qkv_bias else 0


def _layer_norms(model: ModelConfig) -> int:
    norms = (4 if model.norm_placement == "around" else 2) * _norm(model, model.hidden_size)
    if model.qk_norm == "head":
        return norms + 2 * _norm(model, model.head_size)
    if model.qk_norm == "projection":
        return norms + (model.num_attention_heads + model.kv_heads) * model.head_size
    return norms


def _norm(model: ModelConfig, width: int) -> int:
    return 2 * width if model.normalization == "layernorm" else width
