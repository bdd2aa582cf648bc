"""Texts that a model makes of others: the likeliest token always, or the likeliest text by beam search."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from bigtrain.config import Config
from bigtrain.data.tokenizer import Tokenizer
from bigtrain.evaluate.beams import Beams, Found, Search
from bigtrain.finetune.encode import Encoded, Item
from bigtrain.models.cached import CausalRows, PairRows, whole_sequences
from bigtrain.parallel import compat, topology
from bigtrain.parallel.engine import Engine

LIKELIEST_TOKEN = Beams()


def write_texts(
    engine: Engine,
    config: Config,
    encoded: Encoded,
    tokenizer: Tokenizer,
    how: Beams = LIKELIEST_TOKEN,
    before_batch: Callable[[], None] = lambda: None,
) -> list[str] | None:
    """What the model makes of each item's source; see :func:`write`."""
    found = write(engine, config, encoded, tokenizer.eos_id, how, before_batch)
    if found is None:
        return None
    return [tokenizer.decode([i for i in text.ids if i < tokenizer.vocab_size]).strip() for text in found]


@torch.no_grad()
def write(
    engine: Engine,
    config: Config,
    encoded: Encoded,
    end: int,
    how: Beams = LIKELIEST_TOKEN,
    before_batch: Callable[[], None] = lambda: None,
) -> list[Found] | None:
    """The tokens that the model makes of each item's source, until `end` or `finetune.max_target_length` of them.

    Every rank calls it, and each replica of the model writes its share, `training.micro_batch_size` texts at once;
    rank 0 gets all, the others None. `before_batch` is called before each batch.
    """
    layout, size = engine.layout, config.training.micro_batch_size
    order = sorted(range(len(encoded)), key=lambda number: encoded.items[number].first)  # equally long ones together
    made: list[tuple[int, Found]] = []
    with whole_sequences([chunk.module for chunk in engine.chunks]):
        for first in range(0, len(order), size * layout.data):
            before_batch()
            mine = order[first + layout.data_rank * size :][:size]
            # Who has none left goes through the passes of the others, which may be collective.
            items = [encoded.items[number] for number in mine or order[:1]]
            made += zip(mine, _written(engine, config, items, encoded.pad, end, how), strict=False)
    gathered = topology.gather(made)
    if gathered is None:
        return None
    found = dict(row for rows in gathered for row in rows)  # the ranks of a replica have all found the same
    return [found[number] for number in range(len(order))]


def _written(engine: Engine, config: Config, items: Sequence[Item], pad: int, end: int, how: Beams) -> list[Found]:
    """A batch of texts, on every process of the replica."""
    limits = [config.finetune.max_target_length] * len(items)
    if config.model.architecture == "t5":
        first = torch.full((len(items), 1), pad)
        read = _Reader(engine, _pairs(items, pad, max(limits)))
    else:
        room = config.model.max_position_embeddings
        limits = [max(1, min(limit, room - item.first)) for limit, item in zip(limits, items, strict=True)]
        first, padding = _prompts(items, pad)
        read = _Reader(engine, CausalRows(padding, first.shape[1] + max(limits) - 1))
    search = Search(read, _agree, first.to(compat.device()), how, [end], limits, config.model.vocab_size)
    while topology.any_rank(not search.done):
        if search.done:
            read.again()
        else:
            search.step()
    return search.found()


class _Reader:
    """Rows that the engine's model reads, on all processes of a replica."""

    def __init__(self, engine: Engine, rows: CausalRows | PairRows) -> None:
        self._engine, self._rows = engine, rows
        self._last: Tensor | None = None

    def __call__(self, ids: Tensor) -> Tensor | None:
        said = self._engine.predict([self._rows.next(ids)], "next_logits")
        self._rows.cache.sequence_len_offset += ids.shape[1]
        self._last = ids[:, -1:]
        return said[0] if said else None

    def pick(self, rows: Tensor) -> None:
        self._rows.pick(rows)

    def again(self) -> None:
        """The last column once more, to no effect."""
        assert self._last is not None, "something was read"
        self._rows.cache.sequence_len_offset -= 1
        self(self._last)


def _agree(said: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    """What the last stage of this replica's pipeline says, on all of its processes."""
    group = parallel_state.get_model_parallel_group()
    agreed = torch.empty(shape, dtype=torch.float64, device=compat.device()) if said is None else said
    dist.broadcast(agreed, group=group, group_src=dist.get_world_size(group) - 1)
    return agreed


def _prompts(items: Sequence[Item], pad: int) -> tuple[Tensor, Tensor]:
    """Prompts [b, n], and how much padding stands at the left of each [b]."""
    longest = max(item.first for item in items)
    rows = [np.pad(item.ids[: item.first], (longest - item.first, 0), constant_values=pad) for item in items]
    padding = torch.tensor([longest - item.first for item in items], device=compat.device())
    return torch.from_numpy(np.stack(rows)).long(), padding


def _pairs(items: Sequence[Item], pad: int, columns: int) -> PairRows:
    """Sources, and room for what is to be said of them."""
    lengths = torch.tensor([len(item.ids) for item in items])
    longest = int(lengths.max())
    ids = np.stack([np.pad(item.ids, (0, longest - len(item.ids)), constant_values=pad) for item in items])
    is_text = (torch.arange(longest) < lengths[:, None]).to(compat.device())
    return PairRows(torch.from_numpy(ids).long().to(compat.device()), is_text, columns)
