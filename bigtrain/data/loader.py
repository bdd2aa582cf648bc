"""Text for a model that predicts the next token, and reading the next step's while this one trains."""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from bigtrain.data.batch import Batch
from bigtrain.data.packing import Rows
from bigtrain.data.samples import TokenSource

T = TypeVar("T")
Lengths = tuple[int, ...]
"""Tokens of each document of a sample, in order."""


@dataclass(frozen=True)
class CausalBatch(Batch):
    """Text of which every token but the first is to be predicted from those before it: n is s."""

    position_ids: torch.Tensor
    """int32 [b, s]: 0, 1, 2 … in every sequence, or in every document of it where these are packed apart."""
    documents: tuple[Lengths, ...] | None = None
    """Those of each sequence, where these are packed apart; None: attention reads across them."""


class CausalText:
    """Samples of text, for a model that predicts the next token. See :class:`bigtrain.data.batch.BatchSource`.

    With `mask_document_boundaries` a document's first token is no target: what precedes it is another document.
    With `packing` "documents" or "best_fit" a part of a document counts as one; with the latter its first token is
    no target either. Padding is no target.
    """

    def __init__(
        self, samples: TokenSource, packing: str = "contiguous", mask_document_boundaries: bool = False
    ) -> None:
        self.samples = samples
        self.apart = packing in ("documents", "best_fit")
        self.masked = mask_document_boundaries or packing == "best_fit"
        self.every_label_counts = packing in ("contiguous", "documents") and not mask_document_boundaries

    def batches(self, positions: np.ndarray, micro_batch_size: int) -> list[CausalBatch]:
        length = self.samples.sequence_length
        rows = self.samples.read(positions, self.apart or self.masked)
        loss_mask = _loss_mask(rows, self.masked)
        lengths = [_document_lengths(begins, length) for begins in rows.begins or ()] if self.apart else None
        batches = []
        for first in range(0, len(positions), micro_batch_size):
            part = slice(first, first + micro_batch_size)
            mask, position_ids = _plain(micro_batch_size, length)
            if loss_mask is not None:
                mask = torch.from_numpy(loss_mask[part])
            if lengths is not None:
                position_ids = _positions_in_documents(lengths[part], length)
            batches.append(
                CausalBatch(
                    torch.from_numpy(rows.tokens[part, :-1]),
                    torch.from_numpy(rows.tokens[part, 1:]),
                    mask,
                    position_ids,
                    None if lengths is None else tuple(lengths[part]),
                    sources=None if rows.sources is None else torch.from_numpy(rows.sources[part]),
                )
            )
        return batches


def _loss_mask(rows: Rows, first_tokens: bool) -> np.ndarray | None:
    """float32 [n, L]: 0 at padding and, if `first_tokens`, at the first of a document; None: 1 everywhere."""
    if not first_tokens and rows.padding is None:
        return None
    mask = np.ones((len(rows.tokens), rows.tokens.shape[1] - 1), dtype=np.float32)
    if first_tokens:
        for row, begins in zip(mask, rows.begins or (), strict=True):
            row[[begin - 1 for begin in begins if begin]] = 0
    if rows.padding is not None:
        mask[rows.padding[:, 1:]] = 0
    return mask


@functools.lru_cache(maxsize=8)
def _counting(length: int) -> np.ndarray:
    return np.arange(length, dtype=np.int32)


@functools.lru_cache(maxsize=8)
def _plain(sequences: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss mask and positions where there is nothing to mask and no border; shared by all batches."""
    positions = torch.from_numpy(_counting(length)).expand(sequences, length)
    return torch.ones((1, 1)).expand(sequences, length), positions


def _document_lengths(begins: Sequence[int], length: int) -> Lengths:
    """Tokens of each document of a sample of `length` tokens."""
    lengths, before = [], 0
    for begin in begins:
        if 0 < begin < length:
            lengths.append(begin - before)
            before = begin
    lengths.append(length - before)
    return tuple(lengths)


def _positions_in_documents(lengths: Sequence[Lengths], length: int) -> torch.Tensor:
    """How far each token is from the first of its document: int32 [sequences, length]."""
    counting = _counting(length)
    positions = np.empty((len(lengths), length), dtype=np.int32)
    for row, of_documents in zip(positions, lengths, strict=True):
        begin = 0
        for count in of_documents:
            row[begin : begin + count] = counting[:count]
            begin += count
    return torch.from_numpy(positions)


def prefetch(load: Callable[[int], T], positions: Iterable[int]) -> Iterator[T]:
    """Yield `load(position)` for each of `positions`, the next one loading in a thread meanwhile.

    `positions` may be endless. What `load` raises is raised to the caller in its turn. Close the iterator
    (or let it end) to end its thread; nothing else needs saving, for a position is all the state.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="data") as thread:
        current: Future[T] | None = None
        for position in positions:
            upcoming = thread.submit(load, position)
            if current is not None:
                yield current.result()
            current = upcoming
        if current is not None:
            yield current.result()
