"""The tensors of one training step, and reading the next step's while this one trains."""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from bigtrain.data.packing import Rows
from bigtrain.data.samples import TokenSource

T = TypeVar("T")
Lengths = tuple[int, ...]
"""Tokens of each document of a sample, in order."""


@dataclass(frozen=True)
class Batch:
    """One micro-batch on the CPU; every tensor but `sources` is [sequences, sequence_length]. They may share memory:
    not to be written to."""

    input_ids: torch.Tensor
    """Of the type that the dataset has; :class:`bigtrain.parallel.engine.Engine` makes it int64 on the device."""
    labels: torch.Tensor
    """The token after each input."""
    loss_mask: torch.Tensor
    """float32: 1 where the label counts, else 0."""
    position_ids: torch.Tensor
    """int32: 0, 1, 2 … in every sequence, or in every document of it where these are packed apart."""
    documents: tuple[Lengths, ...] | None = None
    """Those of each sequence, where these are packed apart; None: attention reads across them."""
    sources: torch.Tensor | None = None
    """int64 [sequences]: the number of each one's source, in a mixture."""


def counts_every_token(packing: str, mask_document_boundaries: bool) -> bool:
    """Whether every label is a target, so that their number need not be counted."""
    return packing in ("contiguous", "documents") and not mask_document_boundaries


def micro_batches(
    samples: TokenSource,
    first_position: int,
    *,
    global_batch_size: int,
    micro_batch_size: int,
    data_parallel_rank: int = 0,
    data_parallel_size: int = 1,
    mask_document_boundaries: bool = False,
    packing: str = "contiguous",
) -> list[Batch]:
    """This rank's micro-batches of the step whose samples are at `first_position` and the next
    `global_batch_size` - 1 positions.

    Micro-batch m of data-parallel rank r has the `micro_batch_size` positions from
    first_position + (m · data_parallel_size + r) · micro_batch_size: the ranks together read the same
    samples whatever their number, and each only its own. The next step begins at
    `first_position + global_batch_size`, the only state there is.

    With `mask_document_boundaries` a document's first token is no target: what precedes it is another document.
    With `packing` "documents" or "best_fit" a part of a document counts as one; with the latter its first token is
    no target either. Padding is no target.

    Raises:
        DataError: a shard is damaged.
    """
    per_round = micro_batch_size * data_parallel_size
    assert global_batch_size % per_round == 0, "the configuration was validated"
    apart = packing in ("documents", "best_fit")
    masked = mask_document_boundaries or packing == "best_fit"
    offsets = _offsets(global_batch_size, micro_batch_size, data_parallel_rank, data_parallel_size)
    rows = samples.read(first_position + offsets, apart or masked)
    loss_mask = _loss_mask(rows, masked)
    lengths = [_document_lengths(begins, samples.sequence_length) for begins in rows.begins or ()] if apart else None
    batches = []
    for first in range(0, len(offsets), micro_batch_size):
        part = slice(first, first + micro_batch_size)
        mask, position_ids = _plain(micro_batch_size, samples.sequence_length)
        if loss_mask is not None:
            mask = torch.from_numpy(loss_mask[part])
        if lengths is not None:
            position_ids = _positions_in_documents(lengths[part], samples.sequence_length)
        batches.append(
            Batch(
                torch.from_numpy(rows.tokens[part, :-1]),
                torch.from_numpy(rows.tokens[part, 1:]),
                mask,
                position_ids,
                None if lengths is None else tuple(lengths[part]),
                None if rows.sources is None else torch.from_numpy(rows.sources[part]),
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
def _offsets(global_batch_size: int, micro_batch_size: int, rank: int, size: int) -> np.ndarray:
    """Of a rank's positions from a step's first."""
    return np.arange(global_batch_size).reshape(-1, size, micro_batch_size)[:, rank].ravel()


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


def count_targets(batches: Iterable[Batch]) -> int:
    """How many labels count in `batches`: the divisor of their mean loss."""
    return sum(int(batch.loss_mask.sum(dtype=torch.int64)) for batch in batches)


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
