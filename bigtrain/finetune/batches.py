"""Items of examples as batches."""

from collections.abc import Sequence

import numpy as np
import torch

from bigtrain.config import Config
from bigtrain.data.batch import Batch
from bigtrain.data.order import permute
from bigtrain.data.pair_batches import PairBatch
from bigtrain.data.task_batches import CausalTask, EncoderTask
from bigtrain.finetune.encode import Encoded, Item

_GRAIN = 8
"""Texts are padded to a multiple of so many tokens."""


class TaskBatches:
    """The items of a file by position. See :class:`bigtrain.data.batch.BatchSource`.

    A batch is as long as the longest item that this process reads for a step. In the order of the file, positions
    beyond the last item give items that count nothing.
    """

    every_label_counts = False

    def __init__(self, items: Encoded, config: Config, *, shuffle: bool) -> None:
        """With `shuffle` the order is a pure function of (`training.seed`, epoch), and positions count on."""
        self.items, self._pad = items.items, items.pad
        self._config, self._shuffle = config, shuffle
        self._grain = np.lcm(_GRAIN, config.parallel.tensor).item()

    def batches(self, positions: np.ndarray, micro_batch_size: int) -> Sequence[Batch]:
        """The items at `positions`, `micro_batch_size` to a batch."""
        chosen = [self._item(int(position)) for position in positions]
        length = self._padded(max(len(item.ids) for item, _ in chosen))
        targets = self._padded(max(len(item.labels) for item, _ in chosen))
        starts = range(0, len(chosen), micro_batch_size)
        return [self._batch(chosen[start : start + micro_batch_size], length, targets) for start in starts]

    def _item(self, position: int) -> tuple[Item, bool]:
        """An item, and whether it counts."""
        count = len(self.items)
        if not self._shuffle:
            return self.items[min(position, count - 1)], position < count
        epoch, within = divmod(position, count)
        return self.items[int(permute(within, count, self._config.training.seed, epoch))], True

    def _padded(self, length: int) -> int:
        return min(-(-length // self._grain) * self._grain, self._config.training.sequence_length)

    def _batch(self, chosen: Sequence[tuple[Item, bool]], length: int, targets: int) -> Batch:
        if self._config.model.architecture == "t5":
            return self._pairs(chosen, length, targets)
        per_token = self._config.finetune.task in ("tagging", "sequence_to_sequence")
        ids = torch.full((len(chosen), length), self._pad, dtype=torch.int32)
        targets = length if per_token else len(chosen[0][0].labels)
        labels = torch.zeros(len(chosen), targets, dtype=torch.from_numpy(chosen[0][0].labels).dtype)
        weights = torch.zeros(len(chosen), targets)
        for row, (item, counts) in enumerate(chosen):
            ids[row, : len(item.ids)] = torch.from_numpy(item.ids)
            labels[row, : len(item.labels)] = torch.from_numpy(item.labels)
            weights[row, : len(item.labels)] = torch.from_numpy(item.weights) * counts
        speaks = torch.tensor([item.speaks for item, _ in chosen])
        lengths = torch.tensor([len(item.ids) for item, _ in chosen])
        place = torch.arange(length, dtype=torch.int32).expand(len(chosen), length)
        if self._config.model.architecture == "gpt":
            return CausalTask(ids, labels, weights, place, speaks=speaks, lengths=lengths)
        is_text = place < lengths[:, None]
        second = place >= torch.tensor([item.first for item, _ in chosen])[:, None]
        types = (is_text & second).int() if self._config.model.type_vocab_size > 1 else torch.zeros_like(ids)
        mask = None if bool(is_text.all()) else is_text
        return EncoderTask(ids, labels, weights, types, mask, speaks=speaks, lengths=lengths)

    def _pairs(self, chosen: Sequence[tuple[Item, bool]], length: int, targets: int) -> PairBatch:
        """For an encoder that reads `length` tokens and a decoder that says `targets`."""
        ids = torch.full((len(chosen), length), self._pad, dtype=torch.int32)
        said = torch.full((len(chosen), 1 + targets), self._pad, dtype=torch.int32)
        weights = torch.zeros(len(chosen), targets)
        for row, (item, counts) in enumerate(chosen):
            ids[row, : len(item.ids)] = torch.from_numpy(item.ids)
            said[row, 1 : 1 + len(item.labels)] = torch.from_numpy(item.labels)
            weights[row, : len(item.labels)] = torch.from_numpy(item.weights) * counts
        is_text = torch.arange(length) < torch.tensor([len(item.ids) for item, _ in chosen])[:, None]
        mask = None if bool(is_text.all()) else is_text
        return PairBatch(ids, said[:, 1:], weights, said[:, :-1], mask)
