"""The certificate of a conversion."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Agreement:
    """How one model's logits compare with another's; `largest_…` over everything, the others means."""

    largest_difference: float
    mean_difference: float
    largest_logit: float
    """Of the reference, in absolute value."""
    kl_divergence: float
    """KL(reference || other) of the next token's distribution, in nats, mean over positions."""
    greedy_agreement: float
    """Share of positions at which both hold the same token for the likeliest."""


@dataclass(frozen=True)
class Parity:
    """The certificate that lies beside the weights."""

    checkpoint: str
    """BigTrain's side."""
    step: int
    source_sha256: str
    """Of what was converted: of a checkpoint its list of boxes with their checksums, of a folder its weights' files."""
    family: str
    """The `model_type` at Hugging Face."""
    text: str
    """Where the text comes from."""
    tokens: int
    """That both have read; of a language model each gives the logits of the whole vocabulary, of a T5 the decoder's."""
    tolerance: float
    """Largest difference that was allowed: `TOLERANCE` times the largest logit (or 1)."""
    float32: Agreement
    """Both models compute in float32 with the saved weights: this must agree within the tolerance."""
    as_saved: Agreement
    """`transformers` computes in the saved type, against the trained float32 weights: what saving in
    that type costs."""
    dtype: str
    """The saved type."""
    vocabulary_rows: int
    """Of the model at Hugging Face."""
    padded_rows_removed: int
    """Rows that BigTrain's vocabulary has beyond these."""
    embeddings_tied: bool
    """Whether the output layer is the embedding, as `transformers` has loaded it."""
    tokenizer_sha256: str | None
    """Of the tokenizer's file; it gave the same ids in both. None: there is none."""
    files: list[str]
    """What lies in the Hugging Face folder."""
    transformers: str
    """Its version."""

    def describe(self) -> str:
        """The result in a line."""
        line = (
            f"verified on {self.tokens} tokens of {self.text}: largest difference of a logit "
            f"{self.float32.largest_difference:.2e} (allowed {self.tolerance:.2e}, largest logit "
            f"{self.float32.largest_logit:.3g}), greedy agreement {self.float32.greedy_agreement:.2%}"
        )
        if self.dtype == "float32":
            return line
        saved = self.as_saved
        return (
            f"{line}; in {self.dtype} {saved.largest_difference:.2e}, greedy agreement {saved.greedy_agreement:.2%}, "
            f"KL divergence {saved.kl_divergence:.2e} nats"
        )
