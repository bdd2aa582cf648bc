"""From the positions of a run to the batches that a rank trains on."""

from collections.abc import Sequence

from bigtrain.config import Config
from bigtrain.data.batch import Batch, BatchSource, count_targets, micro_batches
from bigtrain.data.encoder import MaskedText
from bigtrain.data.loader import CausalText
from bigtrain.data.masked import MaskedSamples
from bigtrain.data.pair_batches import PairText
from bigtrain.data.pairs import Pairs
from bigtrain.data.samples import TokenSource
from bigtrain.parallel import topology
from bigtrain.parallel.topology import Layout

Readable = TokenSource | MaskedSamples | Pairs


def batch_source(samples: Readable, packing: str, mask_document_boundaries: bool = False) -> BatchSource:
    """Batches of samples, of the kind that these are for; the options are those of the `data` section."""
    if isinstance(samples, MaskedSamples):
        return MaskedText(samples)
    if isinstance(samples, Pairs):
        return PairText(samples)
    return CausalText(samples, packing, mask_document_boundaries)


class BatchReader:
    """Reads what this rank trains on."""

    def __init__(self, config: Config, layout: Layout, samples: Readable | BatchSource) -> None:
        self._training, self._layout = config.training, layout
        if not isinstance(samples, BatchSource):
            samples = batch_source(samples, config.data.packing, config.data.mask_document_boundaries)
        self._source = samples

    def __call__(self, position: int) -> Sequence[Batch]:
        """The micro-batches of the step whose first sample is at `position`. Raises DataError: a shard is damaged."""
        return micro_batches(
            self._source,
            position,
            global_batch_size=self._training.global_batch_size,
            micro_batch_size=self._training.micro_batch_size,
            data_parallel_rank=self._layout.data_rank,
            data_parallel_size=self._layout.data,
        )

    def tokens(self, batches: Sequence[Batch]) -> int:
        """Tokens of the whole global batch, padding included, if all ranks read as many."""
        return sum(batch.input_ids.numel() for batch in batches) * self._layout.data

    def targets(self, batches: Sequence[Batch]) -> list[float]:
        """Of each kind the targets of the whole global batch, the divisor of their mean loss. Of none it is 1."""
        if self._source.every_label_counts:
            return [self._training.global_batch_size * self._training.sequence_length]
        return [count or 1.0 for count in targets_of_all(batches)]


def targets_of_all(batches: Sequence[Batch]) -> list[float]:
    """Of each kind of target how much those of all data-parallel ranks weigh; all of these ranks call it."""
    return topology.sum_over_data([count_targets(batches, kind) for kind in range(len(batches[0].kinds))])
