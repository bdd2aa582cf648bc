"""Samples whose documents are turned around so that their middle comes last."""

from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from bigtrain.data.mixture import Mixture
from bigtrain.data.objectives import fill_in_the_middle, fim_sentinels, rng_at
from bigtrain.data.packing import Rows
from bigtrain.data.samples import Samples
from bigtrain.data.tokenizer import Tokenizer


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
        self._sentinels, self._eos_id = fim_sentinels(tokenizer.special_tokens), tokenizer.eos_id

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
