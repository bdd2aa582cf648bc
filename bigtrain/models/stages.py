"""Which layers lie in which chunk of a pipeline, from the configuration alone: no torch."""

import math
from itertools import accumulate

from bigtrain.config.schema import Config
from bigtrain.data.pairs import pair_lengths
from bigtrain.models.size import layer_flops_per_token, output_flops_per_token, predicted_share, t5_flops


def layers_per_chunk(config: Config) -> list[int]:
    """Layers of each chunk, in the order of the model: as `parallel.layers_per_stage` says, or balanced.

    Chunk number i lies on pipeline stage `i % parallel.pipeline`.
    """
    model, parallel = config.model, config.parallel
    if parallel.layers_per_stage is not None:
        return list(parallel.layers_per_stage)
    chunks = parallel.pipeline * parallel.virtual_pipeline
    if model.architecture == "t5":
        lengths = pair_lengths(config)
        encoder, decoder, output = t5_flops(model, lengths.inputs, lengths.targets)
        costs = [encoder] * model.num_hidden_layers + [decoder] * model.decoder_layers
        return balanced_stretches([*costs[:-1], decoder + output], chunks)
    output = output_flops_per_token(model, predicted_share(config))
    output /= layer_flops_per_token(model, config.training.sequence_length)
    return balanced_layers(model.num_hidden_layers, chunks, output)


def stacks_per_chunk(config: Config) -> list[tuple[int, int]]:
    """Layers of each chunk that are a T5's encoder's, and those that are its decoder's, in the order of the model."""
    left, found = config.model.num_hidden_layers, []
    for layers in layers_per_chunk(config):
        encoders = min(left, layers)
        left -= encoders
        found.append((encoders, layers - encoders))
    return found


def balanced_layers(layers: int, chunks: int, output_cost: float) -> list[int]:
    """Layers of each chunk, so that the largest chunk costs as little as it can and none is without a layer.

    The last chunk also holds the output layer; the embedding on the first is a look-up and costs nothing.
    Layers cost the same, so that handing out one after the other, each to the chunk that costs least so far, ends
    with the least largest chunk. Of equal ones the later gets it: an early stage keeps the activations of
    more micro-batches.

    Args:
        layers: At least `chunks`.
        chunks: Pipeline stages times chunks a stage.
        output_cost: What the output layer costs, in layers.
    """
    assert layers >= chunks, "every chunk holds a layer"
    counts, costs = [1] * chunks, [1.0] * chunks
    costs[-1] += output_cost
    for _ in range(layers - chunks):
        cheapest = min(range(chunks), key=lambda i: (costs[i], -i))
        counts[cheapest] += 1
        costs[cheapest] += 1
    return counts


def balanced_stretches(costs: list[float], chunks: int) -> list[int]:
    """The same for layers that cost different amounts: how many each chunk has, of layers in their order.

    Of equally good ways to cut, that with the shortest first chunk, and so on.

    Args:
        costs: Of each layer; the last one's holds what comes after it.
        chunks: At most as many.
    """
    assert len(costs) >= chunks, "every chunk holds a layer"
    before = [0.0, *accumulate(costs)]
    # By chunks and the first of the layers that they share: what the costliest costs, and the layers of the first.
    least: list[list[tuple[float, int]]] = [[(math.inf, 0)] * len(before) for _ in range(chunks + 1)]
    least[0][-1] = (0.0, 0)
    for left in range(1, chunks + 1):
        for first in range(len(costs) - left, -1, -1):
            ways = range(1, len(costs) - first - left + 2)
            least[left][first] = min(
                (max(before[first + n] - before[first], least[left - 1][first + n][0]), n) for n in ways
            )
    found, first = [], 0
    for left in range(chunks, 0, -1):
        found.append(least[left][first][1])
        first += found[-1]
    return found
