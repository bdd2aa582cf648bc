"""Samples in two parts, as a T5 is trained on: what its encoder reads, what its decoder is to say. Needs no torch."""

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from bigtrain.config.schema import Config
from bigtrain.data.objectives import (
    T5,
    UL2,
    Denoiser,
    corrupt_spans,
    rng_at,
    span_corruption_lengths,
    span_counts,
    split_prefix,
)
from bigtrain.data.samples import TokenSource
from bigtrain.data.tokenizer import Vocabulary
from bigtrain.errors import DataError

DENOISERS: dict[str, tuple[Denoiser, ...]] = {"span_corruption": (T5,), "ul2": UL2, "prefix_lm": ()}
"""By the words of `data.objective`."""
_PADDING_NAMES = ("<pad>", "[PAD]", "<|pad|>")
_ALIGNMENT = 8
"""Tokens that a decoder's length is a multiple of: kernels want it, and tensor-parallel processes share it."""


def start_id(special_tokens: Mapping[str, int], eos_id: int) -> int:
    """The token that a decoder starts from: the tokenizer's padding, or the end of a document."""
    return next((special_tokens[name] for name in _PADDING_NAMES if name in special_tokens), eos_id)


class PairLengths(NamedTuple):
    """Tokens of the parts of a sample."""

    sample: int
    """Taken of the dataset."""
    inputs: int
    """Of the encoder, padding included."""
    targets: int
    """Of the decoder, likewise."""


def pair_lengths(config: Config) -> PairLengths:
    """The longest samples whose inputs, whatever is drawn, fit in `training.sequence_length`.

    Raises:
        DataError: That is too short for the objective.
    """
    length, data = config.training.sequence_length, config.data
    sample, needed = _needed(length, DENOISERS[data.objective])
    parts = math.lcm(_ALIGNMENT, config.parallel.tensor if config.parallel.sequence else 1)
    return PairLengths(sample, length, data.target_length or -(-needed // parts) * parts)


def _needed(length: int, denoisers: tuple[Denoiser, ...]) -> tuple[int, int]:
    """(tokens of a sample, most tokens of its targets) for so many of the encoder."""
    if not denoisers:  # a prefix of one token at least and the end; the rest and the end
        return length, length
    sample = min(span_corruption_lengths(length - (d.mode is not None), d)[0] for d in denoisers)
    return sample, max(sum(span_counts(sample, d)) + 1 for d in denoisers)


@dataclass(frozen=True)
class PairRows:
    """n samples; what is beyond the end of one is its start token."""

    inputs: np.ndarray
    """[n, S] of the dataset's type."""
    targets: np.ndarray
    """[n, 1 + T]: the start, and what is to be said."""
    input_lengths: np.ndarray
    """int64 [n]"""
    target_lengths: np.ndarray
    """int64 [n], the start not counted."""
    sources: np.ndarray | None
    """As those of :class:`bigtrain.data.packing.Rows`."""


class Pairs:
    """Samples of text made into pairs; what is drawn follows from (seed, position).

    The decoder starts from the tokenizer's padding token, as T5's does, or from its end-of-document token if it has
    none; inputs and targets end with the latter. A sample of fewer than two tokens, which `data.packing=padded` may
    have, has nothing to say: it is read and has no target.
    """

    def __init__(self, samples: TokenSource, tokenizer: Vocabulary, config: Config) -> None:
        """`samples` have rows of `pair_lengths(config).sample` tokens.

        Raises:
            DataError: The tokenizer lacks tokens that the objective needs, or `data.target_length` is too short.
        """
        self.lengths = pair_lengths(config)
        self._samples, self._seed = samples, config.training.seed
        self._denoisers = DENOISERS[config.data.objective]
        self._eos_id = tokenizer.eos_id
        special = tokenizer.special_tokens
        self._start_id = start_id(special, tokenizer.eos_id)
        self._sentinel_ids = list(_sentinels(special))
        modes = dict.fromkeys(d.mode for d in self._denoisers if d.mode is not None)
        self._modes = {mode: special[mode] for mode in modes if mode in special}
        self._check(config, [mode for mode in modes if mode not in special])

    def read(self, positions: ArrayLike) -> PairRows:
        """The samples at `positions` [n]. Raises DataError: a shard is damaged."""
        rows = self._samples.read(positions)
        tokens = rows.tokens
        count, (_, most, longest) = len(tokens), self.lengths
        inputs = np.full((count, most), self._start_id, dtype=tokens.dtype)
        targets = np.full((count, 1 + longest), self._start_id, dtype=tokens.dtype)
        lengths = np.zeros((2, count), dtype=np.int64)
        for i, position in enumerate(np.asarray(positions).tolist()):
            sample = tokens[i]
            if rows.padding is not None:
                sample = sample[~rows.padding[i]]
                if len(sample) and sample[-1] == self._eos_id:
                    sample = sample[:-1]  # both parts get one of their own
            given, said = self._pair(sample, rng_at(self._seed, position))
            lengths[:, i] = len(given), len(said)
            inputs[i, : len(given)] = given
            targets[i, 1 : 1 + len(said)] = said
        return PairRows(inputs, targets, lengths[0], lengths[1], rows.sources)

    def _pair(self, sample: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        end = np.array([self._eos_id], dtype=sample.dtype)
        if len(sample) < 2:
            return np.append(sample, end), sample[:0]
        if not self._denoisers:
            given, said = split_prefix(sample, rng)
            return np.append(given, end), np.append(said, end)
        denoiser = self._denoisers[rng.integers(len(self._denoisers)) if len(self._denoisers) > 1 else 0]
        ids = self._sentinel_ids
        given, said = corrupt_spans(sample, rng, sentinel_ids=ids, eos_id=self._eos_id, denoiser=denoiser)
        return given if denoiser.mode is None else np.insert(given, 0, self._modes[denoiser.mode]), said

    def _check(self, config: Config, lacks: list[str]) -> None:
        objective, lengths = config.data.objective, self.lengths
        needed = _needed(lengths.inputs, self._denoisers)[1]
        if lengths.targets < needed:
            raise DataError(
                f"data.target_length ({lengths.targets}) is too short: data.objective={objective} with "
                f"training.sequence_length ({lengths.inputs}) makes targets of up to {needed} tokens"
            )
        spans = max((span_counts(lengths.sample, d)[1] for d in self._denoisers), default=0)
        if spans > len(self._sentinel_ids):
            lacks = [f"<extra_id_0> to <extra_id_{spans - 1}> (it has {len(self._sentinel_ids)} of these)", *lacks]
        if lacks:
            raise DataError(
                f"data.objective={objective} with training.sequence_length ({lengths.inputs}) needs special tokens "
                f"that the tokenizer does not have: {', '.join(lacks)}. Train one with --special-token for each "
                "(`bigtrain tokenizer train`) and prepare the data with it"
            )


def _sentinels(special_tokens: Mapping[str, int]) -> Iterator[int]:
    """T5's, in the order of their numbers."""
    for number in itertools.count():
        if (found := special_tokens.get(f"<extra_id_{number}>")) is None:
            return
        yield found
