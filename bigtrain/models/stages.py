"""Which layers lie in which chunk of a pipeline, from the configuration alone: no torch."""

from bigtrain.config.schema import Config
from bigtrain.models.size import layer_flops_per_token, output_flops_per_token, predicted_share


def layers_per_chunk(config: Config) -> list[int]:
    """Layers of each chunk, in the order of the model: as `parallel.layers_per_stage` says, or balanced.

    Chunk number i lies on pipeline stage `i % parallel.pipeline`.
    """
    model, parallel = config.model, config.parallel
    if parallel.layers_per_stage is not None:
        return list(parallel.layers_per_stage)
    output = output_flops_per_token(model, predicted_share(config))
    output /= layer_flops_per_token(model, config.training.sequence_length)
    return balanced_layers(model.num_hidden_layers, parallel.pipeline * parallel.virtual_pipeline, output)


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
