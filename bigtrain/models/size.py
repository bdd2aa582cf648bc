"""How large a model is and how much it computes, from its configuration alone: no torch, no weights.

Of a mixture of experts, memory holds all experts and a token meets the router and `num_experts_per_tok` of them.
"""

from bigtrain.config.model import ModelConfig
from bigtrain.config.schema import Config


def parameter_count(model: ModelConfig) -> int:
    """Trainable parameters, exactly: what `sum(p.numel())` gives on one process, tied weights once."""
    if model.architecture == "t5":
        return _t5_parameters(model)
    hidden = model.hidden_size
    experts = (model.num_experts or 1) * _feed_forward(model) + _router(model)
    matrices = model.num_hidden_layers * (_attention(model) + experts) + model.vocab_size * hidden
    if not model.tie_word_embeddings:
        matrices += model.vocab_size * hidden
    if model.position_embedding == "learned":
        matrices += model.max_position_embeddings * hidden
    vectors = _layer_biases(model) + _layer_norms(model)
    norm = _norm(model, hidden)
    # The last norm is before the output layer, and BERT's is after the embedding.
    return matrices + model.num_hidden_layers * vectors + norm + _bert_only(model, norm)


def predicted_share(config: Config) -> float:
    """For which share of the tokens the output layer is computed."""
    return config.data.mlm_probability if config.model.architecture == "bert" else 1.0


def flops_per_token(model: ModelConfig, sequence_length: int, predicted: float = 1.0) -> float:
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
        predicted: See :func:`predicted_share`.
    """
    layers = model.num_hidden_layers * layer_flops_per_token(model, sequence_length)
    return layers + output_flops_per_token(model, predicted)


def layer_flops_per_token(model: ModelConfig, sequence_length: int) -> float:
    """One block's part of :func:`flops_per_token`, the mean over the blocks."""
    met = (model.num_experts_per_tok if model.num_experts else 1) * _feed_forward(model) + _router(model)
    seen = [min(window or sequence_length, sequence_length) for window in model.windows]
    scores = model.num_attention_heads * model.head_size * sum(seen) / len(seen)
    return 6.0 * (_attention(model) + met) + 12.0 * scores


def output_flops_per_token(model: ModelConfig, predicted: float = 1.0) -> float:
    """The output layer's part of :func:`flops_per_token`."""
    transform = model.hidden_size if model.architecture == "bert" else 0
    return 6.0 * predicted * (model.vocab_size + transform) * model.hidden_size


def _bert_only(model: ModelConfig, norm: int) -> int:
    """Parameters of the segments' embedding, of what is before the output layer and its biases, and of the pooler."""
    if model.architecture != "bert":
        return 0
    hidden = model.hidden_size
    dense = hidden * hidden + hidden
    pooler = dense + 2 * hidden + 2 if model.add_pooling_layer else 0
    return model.type_vocab_size * hidden + dense + norm + model.vocab_size + pooler


def _t5_parameters(model: ModelConfig) -> int:
    """A decoder's layer has a second attention and its norm, and each stack a final norm and a table of positions."""
    hidden = model.hidden_size
    layers = model.num_hidden_layers + model.decoder_layers
    blocks = layers * (_attention(model) + _feed_forward(model) + 2 * hidden)
    crossing = model.decoder_layers * (_attention(model) + hidden)
    tables = 2 * model.relative_attention_num_buckets * model.num_attention_heads
    embeddings = (1 if model.tie_word_embeddings else 2) * model.vocab_size * hidden
    return blocks + crossing + 2 * hidden + tables + embeddings


def t5_flops(model: ModelConfig, inputs: int, targets: int) -> tuple[float, float, float]:
    """FLOPs to train on a sample of so many tokens: those of a layer of the encoder, of one of the decoder, and of the
    output layer; counted as :func:`flops_per_token` counts them."""
    heads = model.num_attention_heads * model.head_size
    weights = 6.0 * (_attention(model) + _feed_forward(model))
    encoder = inputs * (weights + 12.0 * heads * inputs)
    # Across, queries and the output are of the targets, keys and values of the inputs.
    crossing = 3.0 * _attention(model) * (targets + inputs) + 12.0 * heads * inputs * targets
    decoder = targets * (weights + 12.0 * heads * targets) + crossing
    return encoder, decoder, targets * output_flops_per_token(model)


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
