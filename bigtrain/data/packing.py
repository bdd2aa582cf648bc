"""How a dataset is cut into samples of L + 1 tokens: L inputs and, one further on, their L targets.

Each way of cutting numbers its samples, and finds the tokens of a number when it is asked: nothing is built beforehand
and nothing stored.
"""

import functools
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np

from bigtrain.data.shards import TokenDataset

BINS = 128
"""Samples of a stretch of the stream that `BestFit` packs together."""


@dataclass(frozen=True)
class Rows:
    """Samples, as [n, L + 1] arrays."""

    tokens: np.ndarray
    """The dataset's dtype."""
    begins: list[list[int]] | None = None
    """Of each sample the places where a document, or a part of one, begins, in order; that at 0 may be left out. None
    where it was not asked for."""
    padding: np.ndarray | None = None
    """bool: what is no token of a document; None: nothing."""
    sources: np.ndarray | None = None
    """int64 [n]: the number of the source of each sample, in a mixture."""


class Cut(Protocol):
    """A dataset cut into samples."""

    dataset: TokenDataset
    sequence_length: int

    def __len__(self) -> int:
        """How many there are."""

    def read(self, numbers: Sequence[int], with_begins: bool = False) -> Rows:
        """Those of these numbers. Raises DataError: a shard is damaged."""

    def extent(self, number: int) -> list[tuple[int, int]]:
        """Where in the stream a sample's tokens lie: (first token, how many), in the sample's order."""

    def shards(self, first: int, last: int) -> range:
        """The shards that samples `first` … `last` - 1 lie in, told without reading any."""

    def tokens_left_out(self) -> int | None:
        """Tokens of the dataset that are in no sample; None where all of it would have to be fetched to know."""


class Windows:
    """The stream of tokens in windows: number i is tokens i·L … i·L + L.

    Every token but the first is a target once; what does not fill a last window is left out.
    """

    shared = 1
    """Tokens that a sample has in common with the next one."""

    def __init__(self, dataset: TokenDataset, sequence_length: int) -> None:
        self.dataset = dataset
        self.sequence_length = sequence_length
        self.step = sequence_length + 1 - self.shared

    def __len__(self) -> int:
        return max(self.dataset.tokens - self.shared, 0) // self.step

    def read(self, numbers: Sequence[int], with_begins: bool = False) -> Rows:
        length = self.sequence_length
        firsts = [number * self.step for number in numbers]
        tokens = self.dataset.read_many(firsts, length + 1)
        if not with_begins:
            return Rows(tokens)
        return Rows(tokens, [self.dataset.document_begins(first, length + 1) for first in firsts])

    def extent(self, number: int) -> list[tuple[int, int]]:
        return [(number * self.step, self.sequence_length + 1)]

    def shards(self, first: int, last: int) -> range:
        return self.dataset.shards_of(first * self.step, (last - first) * self.step + self.shared)

    def tokens_left_out(self) -> int:
        return self.dataset.tokens - (len(self) * self.step + self.shared) if len(self) else self.dataset.tokens


class Blocks(Windows):
    """The stream in blocks of L + 1 tokens, of which each token is in one alone: for objectives whose targets are among
    the inputs."""

    shared = 0


class BestFit:
    """Documents put together so that few are cut, stretch by stretch: best-fit packing (arXiv:2404.10830).

    A stretch of `BINS` · (L + 1) tokens fills as many samples without a gap. Documents longer than a sample are cut
    into whole ones and a rest; then the longest piece first is laid where it leaves least room; what fits nowhere at
    the end is cut into the gaps. Every token of a stretch is in one sample, once. Of the last, shorter stretch what
    does not fill a sample is left out.
    """

    def __init__(self, dataset: TokenDataset, sequence_length: int) -> None:
        self.dataset = dataset
        self.sequence_length = sequence_length
        self._packed = functools.lru_cache(maxsize=1024)(self._pack)

    def __len__(self) -> int:
        return self.dataset.tokens // (self.sequence_length + 1)

    def read(self, numbers: Sequence[int], with_begins: bool = False) -> Rows:
        tokens = np.empty((len(numbers), self.sequence_length + 1), dtype=self.dataset.dtype)
        begins: list[list[int]] = []
        for row, number in zip(tokens, numbers, strict=True):
            filled, places = 0, []
            for begin, length in self.extent(number):
                row[filled : filled + length] = self.dataset.read(begin, length)
                places.append(filled)
                filled += length
            begins.append(places)
        return Rows(tokens, begins if with_begins else None)

    def extent(self, number: int) -> list[tuple[int, int]]:
        return self._packed(number // BINS)[number % BINS].tolist()

    def shards(self, first: int, last: int) -> range:
        capacity = self.sequence_length + 1
        begin, end = first // BINS * BINS, min(-(-last // BINS) * BINS, len(self))
        return self.dataset.shards_of(begin * capacity, (end - begin) * capacity)

    def tokens_left_out(self) -> int:
        return self.dataset.tokens - len(self) * (self.sequence_length + 1)

    def _pack(self, stretch: int) -> list[np.ndarray]:
        """The extents of its samples, int64 [pieces, 2] each: small enough to be kept for many stretches."""
        capacity = self.sequence_length + 1
        bins = min(BINS, len(self) - stretch * BINS)
        first = stretch * BINS * capacity
        begins = self.dataset.document_begins(first, bins * capacity)
        if not begins or begins[0]:
            begins.insert(0, 0)  # the rest of a document that began before
        lengths = [end - begin for begin, end in pairwise([*begins, bins * capacity])]
        packed = best_fit(zip(begins, lengths, strict=True), bins, capacity)
        return [np.array(sorted(pieces)) + np.array([first, 0]) for pieces in packed]


def best_fit(documents: "zip[tuple[int, int]]", bins: int, capacity: int) -> list[list[tuple[int, int]]]:
    """Lay documents (begin, length), whose lengths sum to `bins` · `capacity`, into so many bins of that capacity.

    Returns:
        The pieces (begin, length) of each bin.
    """
    filled: list[list[tuple[int, int]]] = []
    pieces: list[tuple[int, int]] = []
    for begin, length in documents:
        whole = length // capacity
        filled += [[(begin + number * capacity, capacity)] for number in range(whole)]
        if rest := length - whole * capacity:
            pieces.append((begin + whole * capacity, rest))
    open_bins: list[list[tuple[int, int]]] = [[] for _ in range(bins - len(filled))]
    room = [(capacity, number) for number in range(len(open_bins))]
    cut: list[tuple[int, int]] = []
    for begin, length in sorted(pieces, key=lambda piece: -piece[1]):
        at = bisect_left(room, (length, -1))
        if at == len(room):
            cut.append((begin, length))
            continue
        left, number = room.pop(at)
        open_bins[number].append((begin, length))
        if left > length:
            insort(room, (left - length, number))
    for begin, length in cut:
        while length:
            left, number = room.pop()  # the largest gap
            part = min(left, length)
            open_bins[number].append((begin, part))
            if left > part:
                insort(room, (left - part, number))
            begin, length = begin + part, length - part
    return filled + open_bins


class Padded:
    """A document to a sample, for fine-tuning: number i is document i, cut at L + 1 tokens or padded to that."""

    def __init__(self, dataset: TokenDataset, sequence_length: int) -> None:
        self.dataset = dataset
        self.sequence_length = sequence_length

    def __len__(self) -> int:
        return self.dataset.documents

    def read(self, numbers: Sequence[int], with_begins: bool = False) -> Rows:
        shape = len(numbers), self.sequence_length + 1
        tokens = np.full(shape, self.dataset.manifest.tokenizer.eos_id, self.dataset.dtype)
        padding = np.ones(tokens.shape, dtype=bool)
        for row, pad, number in zip(tokens, padding, numbers, strict=True):
            document = self.dataset.document(number).tokens[: len(row)]
            row[: len(document)] = document
            pad[: len(document)] = False
        return Rows(tokens, [[0]] * len(tokens) if with_begins else None, padding)

    def extent(self, number: int) -> list[tuple[int, int]]:
        begin, length = self.dataset.document_span(number)
        return [(begin, min(length, self.sequence_length + 1))]

    def shards(self, first: int, last: int) -> range:
        return self.dataset.shards_of_documents(first, last)

    def tokens_left_out(self) -> int | None:
        if self.dataset.is_remote:
            return None
        return int(np.maximum(self.dataset.document_lengths() - (self.sequence_length + 1), 0).sum())


CUTS: dict[str, type[Windows] | type[BestFit] | type[Padded]] = {
    "contiguous": Windows,
    "blocks": Blocks,
    "documents": Windows,
    "best_fit": BestFit,
    "padded": Padded,
}
"""By the words of `data.packing`, and `blocks`."""
