"""Text that is continued a few tokens at a time: what every layer keeps of the tokens before."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from megatron.core.inference.contexts import StaticInferenceContext
from torch import Tensor, nn

from bigtrain.data.loader import CausalBatch
from bigtrain.data.pair_batches import PairBatch

_OF_SEQUENCE_PARALLEL = ("sequence_parallel", "scatter_to_sequence_parallel", "reduce_scatter_embeddings")


class Cache(StaticInferenceContext):
    """Keys and values of the columns that some rows have read so far, in all layers of this process."""

    def __init__(self, rows: int, columns: int) -> None:
        """Room for so many columns; there is nothing yet."""
        super().__init__(rows, columns)
        self.of_encoder: dict[int, tuple[Tensor, Tensor]] = {}
        """Keys and values that a decoder's layers, by their numbers, make of what the encoder says; they stay."""

    def pick(self, rows: Tensor) -> None:
        """Go on with these rows, in this order; one may be there several times."""

        def picked(kept: Tensor) -> Tensor:
            found = kept.new_empty(len(kept), len(rows), *kept.shape[2:])
            found[: self.sequence_len_offset] = kept[: self.sequence_len_offset, rows]
            return found

        self.max_batch_size = len(rows)
        for layer, (key, value) in self.key_value_memory_dict.items():
            self.key_value_memory_dict[layer] = picked(key), picked(value)
        self.of_encoder = {layer: (key[:, rows], value[:, rows]) for layer, (key, value) in self.of_encoder.items()}


@dataclass(frozen=True)
class NextTokens(CausalBatch):
    """The next columns of some rows, for a GPT: `input_ids` [b, n]."""

    attention_mask: Tensor | None = field(kw_only=True)
    """bool [b, 1, n, columns so far]: true where a query sees a key; None: it sees all before it."""
    cache: Cache = field(kw_only=True)


@dataclass(frozen=True)
class NextPair(PairBatch):
    """The next columns of some rows, for a T5: `decoder_input_ids` [b, n]. Its encoder has something to read,
    `input_ids` [b, S], the first time alone, and [b, 0] from then on."""

    cache: Cache = field(kw_only=True)


class CausalRows:
    """Rows that a GPT continues, with padding at their left.

    All rows share the rotary angle of a column: only differences of positions matter to it, and those are the
    rows' own whatever stands left of their beginning. Learned positions are counted from there.
    """

    def __init__(self, padding: Tensor, columns: int) -> None:
        """`padding` [b]: columns left of the beginning of each; `columns`: of the longest that it may become."""
        self._padding = padding
        self.cache = Cache(len(padding), columns)

    def next(self, ids: Tensor) -> NextTokens:
        """The batch that reads the next columns [b, n]."""
        begin = self.cache.sequence_len_offset
        columns = torch.arange(begin, begin + ids.shape[1], device=self._padding.device)
        positions = (columns - self._padding[:, None]).clamp(min=0)
        mask = _seen(self._padding, columns) if self._padding.any() else None
        return NextTokens(ids, ids, torch.zeros(ids.shape), positions, attention_mask=mask, cache=self.cache)

    def pick(self, rows: Tensor) -> None:
        """See :meth:`Cache.pick`."""
        self._padding = self._padding[rows]
        self.cache.pick(rows)


class PairRows:
    """Rows of which a T5's encoder reads a text each, and its decoder says another."""

    def __init__(self, input_ids: Tensor, is_text: Tensor, columns: int) -> None:
        """`input_ids` and `is_text` [b, S]; `columns`: of the longest that is said, its start included."""
        self._input_ids, self._is_text = input_ids, is_text
        self.cache = Cache(len(input_ids), columns)

    def next(self, ids: Tensor) -> NextPair:
        """The batch that reads the next columns of what is said, [b, n]."""
        given, self._input_ids = self._input_ids, self._input_ids[:, :0]
        return NextPair(given, ids, torch.zeros(ids.shape), ids, self._is_text, cache=self.cache)

    def pick(self, rows: Tensor) -> None:
        """See :meth:`Cache.pick`."""
        self._input_ids, self._is_text = self._input_ids[rows], self._is_text[rows]
        self.cache.pick(rows)


def _seen(padding: Tensor, columns: Tensor) -> Tensor:
    """bool [rows, 1, queries, keys]: what the queries in `columns` see of all columns so far. Padding sees itself, so
    that its softmax has a sum, and nobody else sees it."""
    keys = torch.arange(int(columns[-1]) + 1, device=columns.device)
    itself = keys == columns[:, None]
    real = keys >= padding[:, None, None]
    return (((keys <= columns[:, None]) & real) | itself)[:, None]


@contextmanager
def whole_sequences(chunks: Iterable[nn.Module]) -> Iterator[None]:
    """Models without their sequence parallelism: a single column cannot be shared out among the tensor group."""
    held: list[Any] = [part for chunk in chunks for part in chunk.modules()]
    held += {id(part.config): part.config for part in held if hasattr(part, "config")}.values()
    changed = [(part, name) for part in held for name in _OF_SEQUENCE_PARALLEL if getattr(part, name, None) is True]
    for part, name in changed:
        setattr(part, name, False)
    try:
        yield
    finally:
        for part, name in changed:
            setattr(part, name, True)
