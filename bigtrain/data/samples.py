"""The samples of one dataset by position in the run: the whole state of reading is one integer."""

import functools
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike

from bigtrain.data.order import permute_in_windows, stretches
from bigtrain.data.packing import CUTS, Rows
from bigtrain.data.shards import TokenDataset
from bigtrain.errors import DataError

_FEW = 256
"""Numbers that Python compares sooner than numpy."""
_BLOCK = 4096
"""Positions permuted at once: for the few of one step numpy's calls would cost more than the reading."""


class TokenSource(Protocol):
    """Where tokens come from; :class:`Samples` says what each method gives."""

    sequence_length: int

    def sample_ids(self, positions: ArrayLike) -> np.ndarray: ...

    def read(self, positions: ArrayLike, with_begins: bool = False) -> Rows: ...


class Samples:
    """A dataset cut into samples, see :mod:`bigtrain.data.packing`, and these in an order.

    An epoch has `len(samples)` of them, in the dataset's order or, with `shuffle`, in one that is a pure function
    of (seed, epoch). Positions count on through the epochs.

    Args:
        dataset: What to read.
        sequence_length: Inputs of a sample, L.
        seed: Of the order.
        shuffle: Whether there is another order than the dataset's.
        window: Samples of this many tokens are shuffled together, see
            :func:`bigtrain.data.order.permute_in_windows`; None: all.
        packing: How the dataset is cut, in the words of `data.packing`.

    Raises:
        DataError: The dataset does not fill one sample.
    """

    def __init__(
        self,
        dataset: TokenDataset,
        sequence_length: int,
        seed: int = 0,
        shuffle: bool = True,
        *,
        window: int | None = None,
        packing: str = "contiguous",
    ) -> None:
        self.dataset = dataset
        self.packing = packing
        self.cut = CUTS[packing](dataset, sequence_length)
        self.sequence_length = sequence_length
        self.seed = seed
        self.shuffle = shuffle
        self._size = len(self.cut)
        self.window = window
        self._window = self._size if window is None or not shuffle else max(1, window // sequence_length)
        self._fetching: tuple[int, int] | None = None  # epoch and stretch that is being read
        self._block = functools.lru_cache(maxsize=8)(self._permute_block)
        if self._size == 0:
            raise DataError(
                f"{dataset.path}: its {dataset.tokens} tokens do not fill one sample of training.sequence_length "
                f"{sequence_length} and its target; it needs {sequence_length + 1}"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        """For the other ranks, without what is kept of the order."""
        remake = functools.partial(Samples, window=self.window, packing=self.packing)
        return remake, (self.dataset, self.sequence_length, self.seed, self.shuffle)

    def __len__(self) -> int:
        """Samples in one epoch."""
        return self._size

    def sample_ids(self, positions: ArrayLike) -> np.ndarray:
        """The numbers of the samples at `positions` (whole numbers >= 0, any epoch): int64, of the same shape."""
        given = np.asarray(positions, dtype=np.int64)
        if self.shuffle and given.ndim == 1 and 0 < len(given) <= _FEW:  # quick where all lie in one block, as usual
            numbers = given.tolist()
            epoch, first = divmod(numbers[0], self._size)
            low = numbers[0] - first % _BLOCK
            if min(numbers) >= low and max(numbers) < min(low + _BLOCK, (epoch + 1) * self._size):
                return self._block(epoch, first // _BLOCK)[given - low]
        epochs, within = np.divmod(given, self._size)
        if not self.shuffle:
            return within
        blocks = within // _BLOCK
        ids = np.empty_like(within)
        for epoch, block in set(zip(epochs.ravel().tolist(), blocks.ravel().tolist(), strict=True)):
            chosen = (epochs == epoch) & (blocks == block)
            ids[chosen] = self._block(epoch, block)[within[chosen] - block * _BLOCK]
        return ids

    def read(self, positions: ArrayLike, with_begins: bool = False) -> Rows:
        """The samples at `positions` [n].

        Raises:
            DataError: a shard is damaged.
        """
        positions = np.asarray(positions)
        if self.dataset.is_remote and positions.size:
            self._fetch_ahead(positions.item(0))
        return self.cut.read(self.sample_ids(positions).tolist(), with_begins)

    def _fetch_ahead(self, position: int) -> None:
        """Begin to fetch the shards from a position on, in the order of use, whenever a new stretch is reached."""
        epoch, within = divmod(position, self._size)
        stretch = within // self._window
        if self._fetching != (epoch, stretch):
            self._fetching = epoch, stretch
            self.dataset.prefetch(self._shards_from(epoch, stretch))

    def _shards_from(self, epoch: int, stretch: int) -> Iterator[int]:
        """Of this epoch's rest and the next one."""
        if not self.shuffle:
            yield from self.cut.shards(0, self._size)
            return
        for number, first in ((epoch, stretch), (epoch + 1, 0)):
            for begin, end in stretches(self._size, self._window, self.seed, number, first):
                yield from self.cut.shards(begin, end)

    def _permute_block(self, epoch: int, block: int) -> np.ndarray:
        first = block * _BLOCK
        positions = np.arange(first, min(first + _BLOCK, self._size))
        return permute_in_windows(positions, self._size, self._window, self.seed, epoch)
