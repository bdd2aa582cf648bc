"""The loss on held-out text: the same samples and the same number whatever the layout."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from bigtrain.config import Config
from bigtrain.data.batch import Batch, BatchSource, micro_batches
from bigtrain.data.samples import Samples
from bigtrain.parallel.engine import Engine
from bigtrain.training.batches import batch_source, targets_of_all


def validate(
    engine: Engine, config: Config, samples: Samples, before_batch: Callable[[], None] = lambda: None
) -> dict[str, float]:
    """Mean loss over the targets of the first `validation_samples` samples (all, if 0).

    Returns:
        `validation_loss` in nats a token, and `validation_bits_per_byte`: what a code built on the model
        would need for a byte of the text, end-of-document tokens included.
    """
    count = min(config.training.validation_samples or len(samples), len(samples))
    loss = mean_loss(engine, config, batch_source(samples, samples.packing), count, before_batch)
    manifest = samples.dataset.manifest
    return {
        "validation_loss": loss,
        "validation_bits_per_byte": loss / math.log(2) * manifest.tokens / manifest.bytes,
    }


def mean_loss(
    engine: Engine, config: Config, source: BatchSource, count: int, before_batch: Callable[[], None]
) -> float:
    """Mean loss over the targets of the first `count` samples, in nats a target; the same on every rank."""
    totals, targets = np.zeros(1), np.zeros(1)
    for first in range(0, count, config.training.global_batch_size):
        before_batch()
        batches = _batches(engine, config, source, first, count)
        totals = totals + engine.evaluate(batches).double().cpu().numpy()
        targets = targets + np.array(targets_of_all(batches))
    return float((totals / targets).sum())


def _batches(engine: Engine, config: Config, source: BatchSource, first: int, count: int) -> list[Batch]:
    """A global batch; what is beyond `count` in the last one counts nothing."""
    layout, training = engine.layout, config.training
    batches = micro_batches(
        source,
        first,
        global_batch_size=training.global_batch_size,
        micro_batch_size=training.micro_batch_size,
        data_parallel_rank=layout.data_rank,
        data_parallel_size=layout.data,
    )
    kept = []
    for index, batch in enumerate(batches):
        position = first + (index * layout.data + layout.data_rank) * training.micro_batch_size
        counts = torch.arange(position, position + training.micro_batch_size) < count
        kept.append(replace(batch, loss_mask=batch.loss_mask * counts[:, None]))
    return kept
