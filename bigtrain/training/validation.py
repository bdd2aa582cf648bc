"""The loss on held-out text: the same samples and the same number whatever the layout."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from bigtrain.config import Config
from bigtrain.data.batch import Batch, BatchSource, micro_batches
from bigtrain.data.loader import CausalText
from bigtrain.data.samples import Samples
from bigtrain.parallel.engine import Engine
from bigtrain.training.batches import Readable, batch_source, targets_of_all


def validate(
    engine: Engine,
    config: Config,
    samples: Samples,
    reads: Readable | None = None,
    before_batch: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Mean loss over the targets of the first `validation_samples` samples (all, if 0).

    Args:
        engine: The model.
        config: The run's.
        samples: The held-out ones, in their order.
        reads: The same, as the objective makes them; None: as they are.
        before_batch: Called before each global batch.

    Returns:
        `validation_loss` in nats a token. Where there are several kinds of targets, that of each kind as well. Where
        every token is predicted from those before it, `validation_bits_per_byte`: what a code built on the model would
        need for a byte of the text, end-of-document tokens included.
    """
    count = min(config.training.validation_samples or len(samples), len(samples))
    source = batch_source(reads or samples, samples.packing)
    found = mean_losses(engine, config, source, count, before_batch)
    if isinstance(source, CausalText):
        manifest = samples.dataset.manifest
        bits = found["validation_loss"] / math.log(2)
        found["validation_bits_per_byte"] = bits * manifest.tokens / manifest.bytes
    return found


def mean_losses(
    engine: Engine, config: Config, source: BatchSource, count: int, before_batch: Callable[[], None]
) -> dict[str, float]:
    """`validation_loss`, the mean over the targets of the first `count` samples, in nats a target; where there are
    several kinds of targets, that of each kind as well. The same on every rank."""
    totals, targets = np.zeros(1), np.zeros(1)
    kinds: list[str] = []
    for first in range(0, count, config.training.global_batch_size):
        before_batch()
        batches = _batches(engine, config, source, first, count)
        totals = totals + engine.evaluate(batches).double().cpu().numpy()
        targets = targets + np.array(targets_of_all(batches))
        kinds = [*batches[0].kinds]
    means = totals / np.where(targets, targets, 1)
    found = {"validation_loss": float(means.sum())}
    if len(kinds) > 1:
        found |= {f"validation_{kind}_loss": float(mean) for kind, mean in zip(kinds, means, strict=True)}
    return found


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
