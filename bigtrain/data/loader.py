"""The tensors of one training step, and reading the next step's while this one trains."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike

from bigtrain.data.packing import Rows

T = TypeVar("T")
Lengths = tuple[int, ...]
"""Tokens of each document of a sample, in order."""


class TokenSource(Protocol):
    """Where tokens come from; :class:`bigtrain.data.samples.Samples` says what each method gives."""

    sequence_length: int

    def sample_ids(self, positions: ArrayLike) -> np.ndarray: ...

    def read(self, positions: ArrayLike, with_starts: bool = False) -> Rows: ...


@dataclass(frozen=True)
class Batch:
    """One micro-batch on the CPU; every tensor but `sources` is [sequences, sequence_length]."""

    input_ids: torch.Tensor
    """int64."""
    labels: torch.Tensor
    """int64: the token after each input; shares its memory with `input_ids`."""
    loss_mask: torch.Tensor
    """float32: 1 where the label counts, else 0."""
    position_ids: torch.Tensor
    """int64: 0, 1, 2 … in every sequence, or in every document of it where these are packed apart."""
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
    offsets = np.arange(global_batch_size).reshape(-1, data_parallel_size, micro_batch_size)
    apart = packing in ("documents", "best_fit")
    masked = mask_document_boundaries or packing == "best_fit"
    rows = samples.read(first_position + offsets[:, data_parallel_rank].ravel(), apart or masked)
    tokens = torch.from_numpy(rows.tokens)
    loss_mask = torch.ones((len(tokens), samples.sequence_length))
    if masked and rows.starts is not None:
        loss_mask[torch.from_numpy(rows.starts[:, 1:])] = 0
    if rows.padding is not None:
        loss_mask[torch.from_numpy(rows.padding[:, 1:])] = 0
    documents: list[Lengths] | None = None
    position_ids = torch.arange(samples.sequence_length).expand_as(loss_mask)
    if apart and rows.starts is not None:
        documents = [_document_lengths(row[:-1]) for row in rows.starts]
        position_ids = torch.from_numpy(_positions_in_documents(rows.starts[:, :-1]))
    sources = None if rows.sources is None else torch.from_numpy(rows.sources)
    parts = [slice(first, first + micro_batch_size) for first in range(0, len(tokens), micro_batch_size)]
    return [
        Batch(
            tokens[part, :-1],
            tokens[part, 1:],
            loss_mask[part],
            position_ids[part],
            None if documents is None else tuple(documents[part]),
            None if sources is None else sources[part],
        )
        for part in parts
    ]


def _document_lengths(starts: np.ndarray) -> Lengths:
    """Tokens of each document of a sample, of which `starts` [sequence_length] says where one begins."""
    borders = np.flatnonzero(starts[1:]) + 1
    return tuple(np.diff(borders, prepend=0, append=len(starts)).tolist())


def _positions_in_documents(starts: np.ndarray) -> np.ndarray:
    """How far each token is from the last begin of a document, or from the sample's: int64 of the shape of `starts`."""
    places = np.arange(starts.shape[1])
    return places - np.maximum.accumulate(np.where(starts, places, 0), axis=1)


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
