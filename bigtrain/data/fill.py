"""Samples whose documents are turned around so that their middle comes last."""

from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from bigtrain.data.mixture import Mixture
from bigtrain.data.objectives import FimSentinels, fill_in_the_middle, rng_at
from bigtrain.data.packing import Rows
from bigtrain.data.samples import Samples
from bigtrain.data.tokenizer import Tokenizer
from bigtrain.errors import DataError

_SENTINELS = (
    ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"),
    ("<fim_prefix>", "<fim_middle>", "<fim_suffix>"),
    ("<PRE>", "<MID>", "<SUF>"),
)
"""What known tokenizers call them."""


class FillInTheMiddle:
    """The samples of a source, `rate` of whose documents are turned around, see
    :func:`bigtrain.data.objectives.fill_in_the_middle`; what is drawn follows from (seed, position).

    Has the methods of :class:`bigtrain.data.samples.Samples` that a loader wants.
    """

    def __init__(
        self, samples: Samples | Mixture, tokenizer: Tokenizer, *, seed: int, rate: float, spm_rate: float
    ) -> None:
        """Raises:
        DataError: The tokenizer has no sentinels.
        """
        self.sequence_length = samples.sequence_length
        self._samples, self._seed, self._rate, self._spm_rate = samples, seed, rate, spm_rate
        self._sentinels, self._eos_id = fim_sentinels(tokenizer), tokenizer.eos_id

    def sample_ids(self, positions: ArrayLike) -> np.ndarray:
        return self._samples.sample_ids(positions)

    def read(self, positions: ArrayLike, with_begins: bool = False) -> Rows:
        rows = self._samples.read(positions, with_begins=True)
        tokens = rows.tokens.copy()
        for row, begins, position in zip(tokens, rows.begins or (), np.asarray(positions).tolist(), strict=True):
            starts = np.zeros(len(row), dtype=bool)
            starts[begins] = True
            row[:], _ = fill_in_the_middle(
                row,
                starts,
                rng_at(self._seed, position),
                rate=self._rate,
                spm_rate=self._spm_rate,
                sentinels=self._sentinels,
                eos_id=self._eos_id,
            )
        return replace(rows, tokens=tokens, begins=rows.begins if with_begins else None)


def fim_sentinels(tokenizer: Tokenizer) -> FimSentinels:
    """The ids of the tokenizer's sentinels.

    Raises:
        DataError: It has none.
    """
    for names in _SENTINELS:
        ids = [tokenizer.special_tokens.get(name) for name in names]
        if None not in ids:
            return FimSentinels(*(int(i) for i in ids if i is not None))
    raise DataError(
        f"{tokenizer.path}: has no sentinels for data.fim_rate, such as {', '.join(_SENTINELS[0])}; train a tokenizer "
        "with them (`bigtrain tokenizer train --special-token NAME`), or set data.fim_rate=0"
    )
