"""Windows of a dataset's token stream by position in the run: the whole state of reading is one integer."""

import functools

import numpy as np
from numpy.typing import ArrayLike

from bigtrain.data.order import permute
from bigtrain.data.shards import TokenDataset
from bigtrain.errors import DataError

_BLOCK = 4096
"""Positions permuted at once: for the few of one step numpy's calls would cost more than the reading."""


class Samples:
    """Cuts the stream into windows and orders them.

    Window i is tokens i·L … i·L + L of the stream (L = `sequence_length`): L inputs and, one further on,
    their L targets, so that every token but the first is a target once an epoch; what does not fill a
    last window is left out. An epoch has `len(samples)` = (tokens - 1) // L windows, in the stream's
    order or, with `shuffle`, in an order that is a pure function of (seed, epoch). Positions count on
    through the epochs.

    Raises:
        DataError: the dataset is shorter than one window.
    """

    def __init__(self, dataset: TokenDataset, sequence_length: int, seed: int = 0, shuffle: bool = True) -> None:
        self.dataset = dataset
        self.sequence_length = sequence_length
        self.seed = seed
        self.shuffle = shuffle
        self._block = functools.lru_cache(maxsize=8)(self._permute_block)
        self._size = max(dataset.tokens - 1, 0) // sequence_length
        if self._size == 0:
            raise DataError(
                f"{dataset.path}: its {dataset.tokens} tokens do not fill one sample of training.sequence_length "
                f"{sequence_length} and its target; it needs {sequence_length + 1}"
            )

    def __len__(self) -> int:
        """Samples in one epoch."""
        return self._size

    def sample_ids(self, positions: ArrayLike) -> np.ndarray:
        """The windows read at `positions` (whole numbers >= 0, any epoch): int64, of the same shape."""
        epochs, within = np.divmod(np.asarray(positions, dtype=np.int64), self._size)
        if not self.shuffle:
            return within
        blocks = within // _BLOCK
        ids = np.empty_like(within)
        for epoch, block in set(zip(epochs.ravel().tolist(), blocks.ravel().tolist(), strict=True)):
            chosen = (epochs == epoch) & (blocks == block)
            ids[chosen] = self._block(epoch, block)[within[chosen] - block * _BLOCK]
        return ids

    def read(self, positions: ArrayLike) -> np.ndarray:
        """The tokens at `positions` [n]: int64 [n, sequence_length + 1].

        Raises:
            DataError: a shard is damaged.
        """
        starts = self.sample_ids(positions) * self.sequence_length
        tokens = np.empty((len(starts), self.sequence_length + 1), dtype=np.int64)
        for row, start in zip(tokens, starts.tolist(), strict=True):
            row[:] = self.dataset.read(start, len(row))
        return tokens

    def starts(self, positions: ArrayLike) -> np.ndarray:
        """Where in `read(positions)` a document begins: bool [n, sequence_length + 1]. Raises as `read`."""
        starts = self.sample_ids(positions) * self.sequence_length
        mask = np.empty((len(starts), self.sequence_length + 1), dtype=bool)
        for row, start in zip(mask, starts.tolist(), strict=True):
            row[:] = self.dataset.document_starts(start, len(row))
        return mask

    def _permute_block(self, epoch: int, block: int) -> np.ndarray:
        first = block * _BLOCK
        return permute(np.arange(first, min(first + _BLOCK, self._size)), self._size, self.seed, epoch)
