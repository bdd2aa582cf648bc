"""Samples for BERT: text in a frame of special tokens, of which some tokens are hidden (arXiv:1810.04805)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from bigtrain.data.objectives import mask_tokens, rng_at
from bigtrain.data.packing import Rows
from bigtrain.data.samples import TokenSource
from bigtrain.data.tokenizer import Vocabulary
from bigtrain.errors import DataError

SentenceObjective = Literal["none", "next", "order"]
FARTHEST = 1024
"""Positions from a sample to the one that lends it a second segment, at most."""


class FrameTokens(NamedTuple):
    """Ids of the tokens around the text."""

    cls: int
    sep: int
    mask: int
    pad: int


_NAMES = {"cls": ("[CLS]", "<s>"), "sep": ("[SEP]", "</s>"), "mask": ("[MASK]", "<mask>"), "pad": ("[PAD]", "<pad>")}
"""As BERT and RoBERTa write them."""


def frame_tokens(special_tokens: Mapping[str, int]) -> FrameTokens:
    """Those among a tokenizer's special tokens, by their usual names. Raises DataError if one is not there."""
    found = {role: [special_tokens[n] for n in names if n in special_tokens] for role, names in _NAMES.items()}
    missing = [" or ".join(_NAMES[role]) for role, ids in found.items() if not ids]
    if missing:
        raise DataError(
            f"BERT needs a tokenizer with special tokens that this one lacks: {', '.join(missing)}; train one with "
            "`bigtrain tokenizer train --type wordpiece`, or of another type with --special-token for each. "
            f"It has {', '.join([*special_tokens][:20]) or 'none'}"
        )
    return FrameTokens(*(ids[0] for ids in found.values()))


def content_length(sequence_length: int, sentence_objective: SentenceObjective) -> int:
    """Tokens of text in a sequence: what [CLS] and a [SEP] after each segment leave."""
    return sequence_length - (2 if sentence_objective == "none" else 3)


@dataclass(frozen=True)
class MaskedRows:
    """Samples, as [n, s] arrays: [CLS] text [SEP], or [CLS] first [SEP] second [SEP], then padding."""

    input_ids: np.ndarray
    """The dataset's dtype; what is hidden is replaced."""
    labels: np.ndarray
    """The same, with nothing hidden."""
    hidden: np.ndarray
    """bool: what is to be predicted."""
    token_type_ids: np.ndarray
    """uint8: 1 in the second segment and the [SEP] after it, else 0."""
    lengths: np.ndarray
    """int64 [n]: tokens before the padding."""
    sentence_labels: np.ndarray | None
    """int64 [n]: 0 where the segments are as they were, 1 where the second is another's ("next") or they have changed
    places ("order"), -1 where there are no two; None without such an objective."""
    sources: np.ndarray | None
    """int64 [n]: the number of the source of each sample, in a mixture."""


class MaskedSamples:
    """Samples of a source, framed and masked; what is drawn follows from (seed, position).

    The source's samples have `content_length` tokens. With a sentence objective each is cut in two at a place drawn
    from its second and third quarter. "next" (BERT, section 3.1): half of them get the second segment of another
    sample, 1 to `FARTHEST` positions further on. "order" (ALBERT, arXiv:1909.11942, section 3.1): in half of them the
    segments change places.
    """

    def __init__(
        self,
        samples: TokenSource,
        vocabulary: Vocabulary,
        *,
        seed: int,
        sequence_length: int,
        probability: float,
        whole_words: bool,
        sentence_objective: SentenceObjective,
    ) -> None:
        """Raises:
        DataError: The tokenizer lacks a token that is needed.
        """
        self.samples = samples
        self.sequence_length = sequence_length
        self.sentence_objective = sentence_objective
        self._seed, self._probability = seed, probability
        self._frame = frame_tokens(vocabulary.special_tokens)
        self._special_ids = sorted({*vocabulary.special_tokens.values(), vocabulary.eos_id})
        self._eos_id, self._vocab_size = vocabulary.eos_id, vocabulary.vocab_size
        self._begins_word = vocabulary.word_starts() if whole_words else None

    def read(self, positions: ArrayLike) -> MaskedRows:
        """The samples at `positions` [n]. Raises DataError: a shard is damaged."""
        at = np.asarray(positions, dtype=np.int64)
        rngs = [rng_at(self._seed, position) for position in at.tolist()]
        if self.sentence_objective == "next":
            distances = [int(rng.integers(1, FARTHEST + 1)) for rng in rngs]
            rows = self.samples.read(np.concatenate([at, at + distances]))
        else:
            rows = self.samples.read(at)
        shape = len(at), self.sequence_length
        framed = np.full(shape, self._frame.pad, rows.tokens.dtype)
        inputs, hidden = framed.copy(), np.zeros(shape, dtype=bool)
        types, lengths = np.zeros(shape, dtype=np.uint8), np.empty(len(at), dtype=np.int64)
        sentence_labels = np.empty(len(at), dtype=np.int64)
        for i, rng in enumerate(rngs):
            first, second, sentence_labels[i] = self._segments(rows, i, rng)
            whole, begin = self._framed(first, second)
            lengths[i] = length = len(whole)
            framed[i, :length] = whole
            types[i, begin:length] = 1
            inputs[i, :length], hidden[i, :length] = self._hide(framed[i, :length], rng)
        of_sentences = None if self.sentence_objective == "none" else sentence_labels
        sources = None if rows.sources is None else rows.sources[: len(at)]
        return MaskedRows(inputs, framed, hidden, types, lengths, of_sentences, sources)

    def _segments(self, rows: Rows, i: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, int]:
        """The first and the second segment of sample `i`, and its sentence label."""
        text = self._text(rows, i)
        if self.sentence_objective == "none":
            return text, text[:0], -1
        quarter = len(text) // 4
        cut = int(rng.integers(max(quarter, 1), max(len(text) - quarter, 2)))
        first, second, changed = text[:cut], text[cut:], int(rng.integers(2))
        if self.sentence_objective == "next":
            other = self._text(rows, len(rows.tokens) // 2 + i)
            second = other[max(len(other) - len(second), 0) :] if changed else second
        elif changed:
            first, second = second, first
        return first, second, changed if len(first) and len(second) else -1

    def _text(self, rows: Rows, i: int) -> np.ndarray:
        """Sample `i` without padding, and without the end of a document in its last place, where the frame has one."""
        text = rows.tokens[i]
        if rows.padding is not None:
            text = text[~rows.padding[i]]
        return text[:-1] if len(text) and text[-1] == self._eos_id else text

    def _framed(self, first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, int]:
        """The sequence without padding, and where its second segment begins."""
        cls, sep, *_ = self._frame
        if self.sentence_objective == "none":
            return np.concatenate([[cls], first, [sep]]), len(first) + 2
        return np.concatenate([[cls], first, [sep], second, [sep]]), len(first) + 2

    def _hide(self, tokens: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        return mask_tokens(
            tokens,
            rng,
            mask_id=self._frame.mask,
            vocab_size=self._vocab_size,
            special_ids=self._special_ids,
            probability=self._probability,
            word_starts=None if self._begins_word is None else self._begins_word[tokens],
        )
