"""Rotary frequencies, and their scaling for sequences longer than those of the pretraining, as `transformers` has them.

In formulas: d is the width of what is rotated of a head, t the base, L the original length; frequency i of d/2 is
f_i = t^(-2i/d) radians a token.
"""

import math
from typing import Any

import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from torch import Tensor, nn

from bigtrain.config import ModelConfig
from bigtrain.config.model import RopeScalingConfig


class Rotary(RotaryEmbedding):
    """Megatron-core's table of angles, of a model's own frequencies."""

    def __init__(self, model: ModelConfig, theta: float, scaling: RopeScalingConfig | None, **kwargs: Any) -> None:
        super().__init__(model.rotary_size, 1.0, rotary_base=theta, **kwargs)
        self.longest_as_it_is = math.inf
        if scaling is None:
            return
        plain: Tensor = self.inv_freq  # type: ignore[has-type]
        if scaling.rope_type == "longrope":
            self.longest_as_it_is = _original_length(model, scaling)
            self.stretched = plain / plain.new_tensor(scaling.long_factor)
        self.inv_freq = scaled(plain, model, scaling)

    def get_freqs_non_repeated(self, max_seq_len: int, offset: int = 0) -> Tensor:
        """[max_seq_len, d / 2] float32: the angles of positions `offset` and on."""
        frequencies = self.inv_freq if max_seq_len <= self.longest_as_it_is else self.stretched.to(self.inv_freq.device)
        positions = torch.arange(max_seq_len, device=frequencies.device, dtype=frequencies.dtype) + offset
        return torch.outer(positions, frequencies)


class TwoRotaries(nn.Module):
    """A table for the layers that see everything, and one for those with a sliding window (Gemma-3)."""

    def __init__(self, everywhere: Rotary, local: Rotary) -> None:
        super().__init__()
        self.everywhere, self.local = everywhere, local
        self.get_rotary_seq_len = everywhere.get_rotary_seq_len

    def forward(self, max_seq_len: int, **kwargs: Any) -> Tensor:
        """[2, s, 1, 1, d] float32: both tables, in that order."""
        return torch.stack([self.everywhere(max_seq_len, **kwargs), self.local(max_seq_len, **kwargs)])


def rotary(model: ModelConfig, **kwargs: Any) -> Rotary | TwoRotaries:
    """What a model with rotary positions holds as `rotary_pos_emb`; `kwargs` are Megatron-core's."""
    everywhere = Rotary(model, model.rope_theta, model.rope_scaling, **kwargs)
    if model.rope_local_theta is None:
        return everywhere
    return TwoRotaries(everywhere, Rotary(model, model.rope_local_theta, None, **kwargs))


def scaled(plain: Tensor, model: ModelConfig, scaling: RopeScalingConfig) -> Tensor:
    """Frequencies [d / 2] for sequences beyond the original length (with `longrope` up to it), from those within.

    linear: f / factor (arXiv:2306.15595). llama3: a mixture of f / factor and f, the share of f rising from 0 to 1
    as f turns `low_freq_factor` to `high_freq_factor` times in L (transformers' `llama3`; arXiv:2407.21783). yarn: the
    same over the index i, from `beta_slow` to `beta_fast` turns in L (arXiv:2309.00071, equations 17 to 23).
    longrope: each f / a factor of its own (arXiv:2402.13753).
    """
    if scaling.rope_type == "longrope":
        return plain / plain.new_tensor(scaling.short_factor)
    assert scaling.factor is not None, "the configuration was validated"
    if scaling.rope_type == "linear":
        return plain / scaling.factor
    kept = _turning_share(plain, scaling) if scaling.rope_type == "llama3" else _index_share(plain, model, scaling)
    return (1 - kept) * plain / scaling.factor + kept * plain


def attention_factor(model: ModelConfig) -> float:
    """What rotated queries and keys are multiplied by."""
    scaling = model.rope_scaling
    if scaling is None or scaling.rope_type in ("linear", "llama3"):
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.rope_type == "yarn":
        assert scaling.factor is not None, "the configuration was validated"
        return 0.1 * math.log(scaling.factor) + 1
    original = _original_length(model, scaling)
    factor = model.max_position_embeddings / original
    return math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0


def _turning_share(plain: Tensor, scaling: RopeScalingConfig) -> Tensor:
    low, high, length = scaling.low_freq_factor, scaling.high_freq_factor, scaling.original_max_position_embeddings
    assert low is not None, "the configuration was validated"
    assert high is not None
    assert length is not None
    turns = length / (2 * math.pi / plain)
    return ((turns - low) / (high - low)).clamp(0, 1)


def _index_share(plain: Tensor, model: ModelConfig, scaling: RopeScalingConfig) -> Tensor:
    """The index at which a frequency turns n times in L is d ln(L / (2 pi n)) / (2 ln t)."""
    d, length = model.rotary_size, _original_length(model, scaling)

    def index(turns: float) -> float:
        return d * math.log(length / (2 * math.pi * turns)) / (2 * math.log(model.rope_theta))

    first = max(math.floor(index(scaling.beta_fast)), 0)
    last = min(math.ceil(index(scaling.beta_slow)), d - 1)
    width = last - first or 0.001  # transformers' guard against a division by zero
    indices = torch.arange(d // 2, dtype=torch.float32, device=plain.device)
    return 1 - ((indices - first) / width).clamp(0, 1)


def _original_length(model: ModelConfig, scaling: RopeScalingConfig) -> int:
    return scaling.original_max_position_embeddings or model.max_position_embeddings
