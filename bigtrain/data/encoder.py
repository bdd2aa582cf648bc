"""Batches for a model that reads text from both sides."""

from dataclasses import dataclass

import numpy as np
import torch

from bigtrain.data.batch import Batch
from bigtrain.data.masked import MaskedRows, MaskedSamples


@dataclass(frozen=True)
class EncoderBatch(Batch):
    """Text for BERT: s tokens of each sequence, padding included."""

    token_type_ids: torch.Tensor
    """[b, s]: the segment of each token, 0 or 1."""
    attention_mask: torch.Tensor | None
    """bool [b, s]: true where there is text; None: nothing is padding."""


@dataclass(frozen=True)
class MaskedBatch(EncoderBatch):
    """Text of which some tokens are hidden: `labels` [b, s] are the tokens, n is s. Where segments are to be judged,
    both have a last column more, for the label of the whole."""

    @property
    def kinds(self) -> dict[str, int]:
        length = self.input_ids.shape[1]
        return {"token": length, "sentence": 1} if self.labels.shape[1] > length else {"token": length}


class MaskedText:
    """Masked samples as batches. See :class:`bigtrain.data.batch.BatchSource`."""

    every_label_counts = False

    def __init__(self, samples: MaskedSamples) -> None:
        self.samples = samples

    def batches(self, positions: np.ndarray, micro_batch_size: int) -> list[MaskedBatch]:
        rows = self.samples.read(positions)
        firsts = range(0, len(positions), micro_batch_size)
        return [_batch(rows, slice(first, first + micro_batch_size)) for first in firsts]


def _batch(rows: MaskedRows, part: slice) -> MaskedBatch:
    input_ids, lengths = torch.from_numpy(rows.input_ids[part]), torch.from_numpy(rows.lengths[part])
    labels, loss_mask = rows.labels[part], rows.hidden[part].astype(np.float32)
    if rows.sentence_labels is not None:
        of_sentences = rows.sentence_labels[part, None]
        labels = np.concatenate([labels, np.maximum(of_sentences, 0)], axis=1)
        loss_mask = np.concatenate([loss_mask, of_sentences >= 0], axis=1, dtype=np.float32)
    length = input_ids.shape[1]
    return MaskedBatch(
        input_ids,
        torch.from_numpy(labels),
        torch.from_numpy(loss_mask),
        torch.from_numpy(rows.token_type_ids[part]),
        None if bool((lengths == length).all()) else torch.arange(length) < lengths[:, None],
        sources=None if rows.sources is None else torch.from_numpy(rows.sources[part]),
    )
