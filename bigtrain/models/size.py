"""How large a model is and how much it computes, from its configuration alone: no torch, no weights."""

from bigtrain.config.schema import ModelConfig


def parameter_count(model: ModelConfig) -> int:
    """Trainable parameters, exactly: what `sum(p.numel())` gives on one process, tied weights once."""
    hidden = model.hidden_size
    matrices = model.num_hidden_layers * _layer_matrices(model) + model.vocab_size * hidden
    if not model.tie_word_embeddings:
        matrices += model.vocab_size * hidden
    if model.position_embedding == "learned":
        matrices += model.max_position_embeddings * hidden
    norm = 2 * hidden if model.normalization == "layernorm" else hidden
    return matrices + model.num_hidden_layers * (_layer_biases(model) + 2 * norm) + norm


def flops_per_token(model: ModelConfig, sequence_length: int) -> float:
    """Model FLOPs to train on one token, forward and backward.

    The convention of PaLM's appendix B (arXiv:2204.02311): 6 N + 12 L H Q T, a multiplication and an
    addition counted as two. N are the weights that multiply: every matrix of the blocks and the output
    layer (tied or not), but neither embeddings, which are looked up, nor norms and biases. The second term is
    attention's scores and weighted sum over all T = `sequence_length` positions: the causal half that a good
    kernel leaves out is counted all the same, as PaLM does. Recomputed activations are not counted.

    Args:
        model: The shape; L is its `num_hidden_layers`, H its `num_attention_heads`, Q its head size.
        sequence_length: Tokens per sequence.
    """
    weights = model.num_hidden_layers * _layer_matrices(model) + model.vocab_size * model.hidden_size
    attention = model.num_hidden_layers * model.num_attention_heads * model.head_size * sequence_length
    return 6.0 * weights + 12.0 * attention


def _layer_matrices(model: ModelConfig) -> int:
    """Elements of one block's matrices: query and output, key and value, feed-forward."""
    heads = 2 * model.num_attention_heads + 2 * model.kv_heads
    return model.hidden_size * (heads * model.head_size + (3 if model.gated_mlp else 2) * model.ffn_size)


def _layer_biases(model: ModelConfig) -> int:
    qkv = (model.num_attention_heads + 2 * model.kv_heads) * model.head_size
    if model.linear_bias:
        return qkv + model.hidden_size + (2 if model.gated_mlp else 1) * model.ffn_size + model.hidden_size
    return qkv if model.qkv_bias else 0
