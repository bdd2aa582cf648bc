"""The loss on held-out text: the same samples and the same number whatever the layout."""

import math
from collections.abc import Callable
from dataclasses import replace

import torch

from bigtrain.config import Config
from bigtrain.data.loader import Batch, count_targets, micro_batches
from bigtrain.data.samples import Samples
from bigtrain.parallel import topology
from bigtrain.parallel.engine import Engine


def validate(
    engine: Engine, config: Config, samples: Samples, before_batch: Callable[[], None] = lambda: None
) -> dict[str, float]:
    """Mean loss over the targets of the first `validation_samples` samples (all, if 0).

    Returns:
        `validation_loss` in nats a token, and `validation_bits_per_byte`: what a code built on the model
        would need for a byte of the text, end-of-document tokens included.
    """
    size = config.training.global_batch_size
    count = min(config.training.validation_samples or len(samples), len(samples))
    total, targets = 0.0, 0
    for first in range(0, count, size):
        before_batch()
        batches = _batches(engine, config, samples, first, count)
        total += float(engine.evaluate(batches))
        targets += topology.sum_over_data(count_targets(batches))
    loss = total / targets
    manifest = samples.dataset.manifest
    return {
        "validation_loss": loss,
        "validation_bits_per_byte": loss / math.log(2) * manifest.tokens / manifest.bytes,
    }


def _batches(engine: Engine, config: Config, samples: Samples, first: int, count: int) -> list[Batch]:
    """A global batch; what is beyond `count` in the last one counts nothing."""
    layout, training = engine.layout, config.training
    batches = micro_batches(
        samples,
        first,
        global_batch_size=training.global_batch_size,
        micro_batch_size=training.micro_batch_size,
        data_parallel_rank=layout.data_rank,
        data_parallel_size=layout.data,
        packing=samples.packing,
    )
    kept = []
    for index, batch in enumerate(batches):
        position = first + (index * layout.data + layout.data_rank) * training.micro_batch_size
        counts = torch.arange(position, position + training.micro_batch_size) < count
        kept.append(replace(batch, loss_mask=batch.loss_mask * counts[:, None]))
    return kept
