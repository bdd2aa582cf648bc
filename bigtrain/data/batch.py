"""What a model is trained on in one forward pass, and where it comes from."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from torch import Tensor, float64


@dataclass(frozen=True)
class Batch:
    """One micro-batch on the CPU: b samples, s input tokens of each, n targets of each. An architecture or a task adds
    the tensors that it needs. Tensors may share memory: not to be written to.

    Whole numbers may be of any type; :class:`bigtrain.parallel.engine.Engine` makes them int64 on the device.
    """

    input_ids: Tensor
    """[b, s]"""
    labels: Tensor
    """What is to be said; of what shape, the model's `losses` knows."""
    loss_mask: Tensor
    """float32 [b, n], the shape of the model's losses: the weight of each target, 0 where there is none."""
    sources: Tensor | None = field(default=None, kw_only=True)
    """int64 [b]: the number of each sample's source, in a mixture."""

    @property
    def kinds(self) -> dict[str, int]:
        """Kinds of targets, each with its columns of `loss_mask`, in order. The loss is the sum of the kinds' means."""
        return {"token": self.loss_mask.shape[1]}

    @property
    def length(self) -> int:
        """Tokens of what goes from one pipeline stage to the next, the same for all micro-batches of a step."""
        return self.input_ids.shape[1]


@runtime_checkable
class BatchSource(Protocol):
    """Samples made into batches: a pure function of their positions."""

    every_label_counts: bool
    """Whether all of a sample's targets weigh 1, so that their number need not be counted."""

    def batches(self, positions: np.ndarray, micro_batch_size: int) -> Sequence[Batch]:
        """The samples at `positions` [n], `micro_batch_size` to a batch. Raises DataError: a shard is damaged."""


def micro_batches(
    source: BatchSource,
    first_position: int,
    *,
    global_batch_size: int,
    micro_batch_size: int,
    data_parallel_rank: int = 0,
    data_parallel_size: int = 1,
) -> Sequence[Batch]:
    """This rank's micro-batches of the step whose samples are at `first_position` and the next
    `global_batch_size` - 1 positions.

    Micro-batch m of data-parallel rank r has the `micro_batch_size` positions from
    first_position + (m · data_parallel_size + r) · micro_batch_size: the ranks together read the same
    samples whatever their number, and each only its own. The next step begins at
    `first_position + global_batch_size`, the only state there is.

    Raises:
        DataError: a shard is damaged.
    """
    assert global_batch_size % (micro_batch_size * data_parallel_size) == 0, "the configuration was validated"
    step = np.arange(first_position, first_position + global_batch_size)
    of_rank = step.reshape(-1, data_parallel_size, micro_batch_size)[:, data_parallel_rank].ravel()
    return source.batches(of_rank, micro_batch_size)


def count_targets(batches: Iterable[Batch], kind: int = 0) -> float:
    """How much the targets of a kind weigh in `batches`, the divisor of their mean loss: a number of targets, exact
    below 2^53, where each weighs 1."""
    return sum(batch.loss_mask.split([*batch.kinds.values()], 1)[kind].sum(dtype=float64).item() for batch in batches)
