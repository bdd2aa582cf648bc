"""The tensors of texts that are judged."""

from dataclasses import dataclass, field

from torch import Tensor

from bigtrain.data.encoder import EncoderBatch
from bigtrain.data.loader import CausalBatch


@dataclass(frozen=True)
class CausalTask(CausalBatch):
    """Texts for a model that reads from left to right: what follows a token it has not seen, so that padding at the end
    needs no mask."""

    speaks: Tensor = field(kw_only=True)
    """[b]: the token that speaks for each text."""
    lengths: Tensor = field(kw_only=True)
    """[b]: tokens of each, without padding."""


@dataclass(frozen=True)
class EncoderTask(EncoderBatch):
    """Texts for a model that reads from both sides; see :class:`CausalTask`."""

    speaks: Tensor = field(kw_only=True)
    lengths: Tensor = field(kw_only=True)
