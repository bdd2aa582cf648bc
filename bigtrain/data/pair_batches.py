"""The tensors that a T5 is trained on."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bigtrain.data.batch import Batch
from bigtrain.data.pairs import Pairs


@dataclass(frozen=True)
class PairBatch(Batch):
    """Inputs of an encoder, `input_ids` [b, S], and what its decoder is to say, `labels` [b, T]: n is T."""

    decoder_input_ids: Tensor
    """[b, T]: the labels, one place later."""
    attention_mask: Tensor | None = None
    """bool [b, S]: true where there is text in the inputs; None: nothing is padding. That of the labels stands at their
    end and weighs nothing."""

    @property
    def length(self) -> int:
        return self.input_ids.shape[1] + self.decoder_input_ids.shape[1]


class PairText:
    """Samples of text, for a T5. See :class:`bigtrain.data.batch.BatchSource`."""

    every_label_counts = False

    def __init__(self, pairs: Pairs) -> None:
        self._pairs = pairs

    def batches(self, positions: np.ndarray, micro_batch_size: int) -> list[PairBatch]:
        rows = self._pairs.read(positions)
        text = np.arange(rows.inputs.shape[1]) < rows.input_lengths[:, None]
        loss_mask = np.arange(rows.targets.shape[1] - 1) < rows.target_lengths[:, None]
        return [
            PairBatch(
                torch.from_numpy(rows.inputs[part]),
                torch.from_numpy(rows.targets[part, 1:]),
                torch.from_numpy(loss_mask[part].astype(np.float32)),
                torch.from_numpy(rows.targets[part, :-1]),
                None if text[part].all() else torch.from_numpy(text[part]),
                sources=None if rows.sources is None else torch.from_numpy(rows.sources[part]),
            )
            for part in (slice(first, first + micro_batch_size) for first in range(0, len(text), micro_batch_size))
        ]
