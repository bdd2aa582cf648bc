"""The options of a model's shape."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from bigtrain.config.section import NonNegative, Probability, Section


class RopeScalingConfig(Section):
    """Rotary frequencies stretched for sequences longer than those that a model was pretrained on: `transformers`'
    `rope_scaling`."""

    rope_type: Literal["linear", "llama3", "yarn", "longrope"]
    """`linear` slows all frequencies down (arXiv:2306.15595); `llama3` the low ones (arXiv:2407.21783); `yarn` the more
    the lower they are (arXiv:2309.00071); `longrope` each by a factor of its own (arXiv:2402.13753)."""
    factor: Annotated[float, Field(ge=1)] | None = None
    """How often longer sequences become; with `longrope` it is `max_position_embeddings` over
    `original_max_position_embeddings`."""
    original_max_position_embeddings: PositiveInt | None = None
    """The longest sequence of the pretraining; default of `yarn`: `max_position_embeddings`."""
    low_freq_factor: PositiveFloat | None = None
    """`llama3` slows down by `factor` frequencies that turn less than so often in the original length."""
    high_freq_factor: PositiveFloat | None = None
    """`llama3` leaves alone frequencies that turn more than so often in the original length."""
    beta_fast: PositiveFloat = 32.0
    """`yarn` leaves alone frequencies that turn more than so often in the original length."""
    beta_slow: PositiveFloat = 1.0
    """`yarn` slows down by `factor` frequencies that turn less than so often in the original length."""
    attention_factor: PositiveFloat | None = None
    """Factor of the rotated queries and keys; default: for `yarn` 0.1 ln(factor) + 1, for `longrope`
    sqrt(1 + ln(factor) / ln(original_max_position_embeddings))."""
    short_factor: list[PositiveFloat] | None = None
    """`longrope`'s divisor of each frequency, for sequences up to the original length."""
    long_factor: list[PositiveFloat] | None = None
    """`longrope`'s divisor of each frequency, for longer sequences."""


class ModelConfig(Section):
    """The shape of the model."""

    architecture: Literal["gpt", "bert", "t5"] = "gpt"
    """`gpt` predicts the next token; `bert` (arXiv:1810.04805) what was hidden, from both sides; `t5`
    (arXiv:1910.10683) a text from another, by an encoder and a decoder."""
    vocab_size: PositiveInt
    """Rows of the embedding, at least the tokenizer's vocabulary. Never padded behind your back:
    choose a multiple of 128 for speed and of `parallel.tensor` for splitting."""
    hidden_size: PositiveInt
    """Width of the residual stream."""
    num_hidden_layers: PositiveInt
    """Transformer blocks; of a T5, those of the encoder."""
    num_decoder_layers: PositiveInt | None = None
    """Blocks of a T5's decoder; default: as many as the encoder has."""
    num_attention_heads: PositiveInt
    """Query heads."""
    num_key_value_heads: PositiveInt | None = None
    """Key and value heads (grouped-query attention); default: as many as query heads."""
    head_dim: PositiveInt | None = None
    """Width of one head; default: `hidden_size / num_attention_heads`."""
    intermediate_size: PositiveInt | None = None
    """Inner width of the feed-forward block; default: `4 * hidden_size`."""
    max_position_embeddings: PositiveInt = 2048
    """The longest sequence, in tokens; T5's relative positions have no such bound."""
    position_embedding: Literal["rope", "learned", "relative"] = "rope"
    """Rotary (RoFormer, arXiv:2104.09864), learned absolute positions (GPT-2, BERT), or T5's, learned for each
    distance."""
    relative_attention_num_buckets: PositiveInt = 32
    """Ranges of distances that T5's positions tell apart."""
    relative_attention_max_distance: PositiveInt = 128
    """The distance, in tokens, from which on they are all one."""
    rope_theta: PositiveFloat = 10000.0
    """Base of the rotary frequencies."""
    rope_local_theta: PositiveFloat | None = None
    """Base of those of the layers with a sliding window, which are not scaled (Gemma-3's `rope_local_base_freq`);
    default: as all."""
    partial_rotary_factor: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Part of each head that is rotated (GPT-NeoX)."""
    rope_scaling: RopeScalingConfig | None = None
    """Frequencies stretched for longer sequences; default: as they are."""
    sliding_window: PositiveInt | None = None
    """Tokens that a token sees at most, itself among them (Mistral); default: all before it."""
    layer_types: list[Literal["full_attention", "sliding_attention"]] | None = None
    """Which layers have the window, one word a layer; a shorter list is repeated. Default: all, if there is one."""
    qk_norm: Literal["none", "head", "projection"] = "none"
    """Norm of queries and keys: of each head by itself (Qwen3), or of all together (OLMo-2)."""
    query_pre_attn_scalar: PositiveFloat | None = None
    """Attention scores are divided by its square root; default: by that of the head size (Gemma-2)."""
    attn_logit_softcapping: PositiveFloat | None = None
    """Attention scores are bent to stay below it, `cap * tanh(score / cap)` (Gemma-2). Keeps all of them in memory."""
    final_logit_softcapping: PositiveFloat | None = None
    """The same of the output's logits."""
    normalization: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    """Kind of all norms."""
    norm_eps: PositiveFloat = 1e-5
    """Added to the variance inside the norm."""
    norm_placement: Literal["before", "after", "around"] = "before"
    """A norm before each sub-layer (Llama), after it, before its output is added (OLMo-2), or both (Gemma-2); and one
    at the end."""
    zero_centered_norm: bool = False
    """Norms multiply by one plus their weight (Gemma)."""
    parallel_residual: bool = False
    """Attention and feed-forward read the same input, and are added to it together (GPT-NeoX)."""
    hidden_act: Literal["silu", "gelu", "gelu_new", "relu"] = "silu"
    """Activation of the feed-forward block; `gelu_new` is GPT-2's tanh approximation."""
    gated_mlp: bool = True
    """Feed-forward with a gate: `act(gate(x)) * up(x)`; with `silu` this is SwiGLU."""
    linear_bias: bool = False
    """Biases on every linear layer (GPT-2, GPT-3)."""
    qkv_bias: bool = False
    """Biases on the query, key and value projections alone (Qwen2)."""
    tie_word_embeddings: bool = False
    """The output layer uses the embedding's weights."""
    position_offset: Annotated[int, Field(ge=0)] = 0
    """Row of BERT's learned positions that the first token has; RoBERTa's is 2, so that its longest sequence is by 2
    shorter than `max_position_embeddings`."""
    type_vocab_size: PositiveInt = 2
    """Segments that BERT's embedding tells apart."""
    add_pooling_layer: bool = False
    """BERT's layer over the first token that `data.sentence_objective` is learned from."""
    scale_embeddings: bool = False
    """Embeddings are multiplied by sqrt(hidden_size) (Gemma)."""
    num_experts: PositiveInt | None = None
    """Feed-forward blocks of each layer, of which a router picks `num_experts_per_tok` for each token (mixture of
    experts, arXiv:2101.03961); default: one, without a router."""
    num_experts_per_tok: PositiveInt = 2
    """Experts that a token meets."""
    moe_intermediate_size: PositiveInt | None = None
    """Inner width of one expert; default: `intermediate_size`."""
    norm_topk_prob: bool = True
    """The weights of the chosen experts sum to one (Mixtral); false leaves them as the softmax over all gives them."""
    router_aux_loss_coef: NonNegative = 0.01
    """Weight of the load-balancing loss (Switch Transformer, arXiv:2101.03961, equation 4; its alpha is the default),
    taken over each sequence and added for each layer; 1 where all experts get as much."""
    router_z_loss_coef: NonNegative = 0.001
    """Weight of the router's z-loss (ST-MoE, arXiv:2202.08906, equation 5; its default), added for each layer."""
    hidden_dropout: Probability = 0.0
    """Dropout probability after the embedding and each sub-layer."""
    attention_dropout: Probability = 0.0
    """Dropout probability of the attention weights."""
    initializer_range: PositiveFloat = 0.02
    """Standard deviation of the initial weights; GPT's projections that write into the residual
    stream get it divided by sqrt(2 * num_hidden_layers), as in GPT-2. A T5's follow from its widths alone."""

    @property
    def windows(self) -> list[int | None]:
        """The sliding window of each layer; None: it sees all before."""
        kinds = self.layer_types or ["full_attention" if self.sliding_window is None else "sliding_attention"]
        of_kind = {"full_attention": None, "sliding_attention": self.sliding_window}
        return [of_kind[kinds[layer % len(kinds)]] for layer in range(self.num_hidden_layers)]

    @property
    def longest_sequence(self) -> int:
        """In tokens; T5's relative positions have no such bound."""
        return self.max_position_embeddings - self.position_offset

    @property
    def rotary_size(self) -> int:
        """Width of the part of a head that is rotated."""
        return int(self.head_size * self.partial_rotary_factor)

    @property
    def kv_heads(self) -> int:
        """Key and value heads, the default applied."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def decoder_layers(self) -> int:
        """Blocks of a T5's decoder, the default applied; 0 in the other architectures."""
        return (self.num_decoder_layers or self.num_hidden_layers) if self.architecture == "t5" else 0

    @property
    def head_size(self) -> int:
        """Width of one head, the default applied."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def ffn_size(self) -> int:
        """Inner width of the feed-forward block, or of one expert, the default applied."""
        expert = self.moe_intermediate_size if self.num_experts else None
        return expert or self.intermediate_size or 4 * self.hidden_size
