"""BigTrain's own model on this process: out of a checkpoint, whole, or as names and shapes without memory."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory

from bigtrain.checkpoint.catalog import Checkpoint
from bigtrain.checkpoint.planners import Holding
from bigtrain.config import Config, ModelConfig, parse_config
from bigtrain.convert.source import model_config
from bigtrain.convert.weights import WEIGHTS, Weights
from bigtrain.models.gpt import GPT, build_gpt
from bigtrain.models.sharding import sharded_parameters
from bigtrain.parallel import topology


@contextmanager
def own_model(checkpoint: Checkpoint) -> Iterator[GPT]:
    """The model in float32, ready to be called; its world of one process ends with the block.

    `model(input_ids, None, None)` maps [b, s] token ids to [b, s, vocab_size] logits.

    Raises:
        CheckpointError: A tensor or file is missing, damaged or of another shape.
    """
    with _alone(model_config(checkpoint)) as config:
        (model,) = build_gpt(config)
        Weights(checkpoint).fill(_boxes(model))
        yield model.eval()


def own_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and global shape of every weight that a checkpoint of this model holds."""
    with _alone(model) as config, torch.device("meta"):
        (built,) = build_gpt(config)
        found = {}
        for entry in built.sharded_state_dict().values():
            if isinstance(entry, ShardedTensor):
                found[entry.key] = tuple(entry.global_shape)
            elif isinstance(entry, ShardedTensorFactory):
                found |= {part.key: tuple(part.global_shape) for part in entry.build()}
    return found


@contextmanager
def _alone(model: ModelConfig) -> Iterator[Config]:
    """A world of one process with the model's configuration in it; data and training are not used."""
    training = {"output_dir": "-", "steps": 1, "global_batch_size": 1, "precision": "fp32"}
    config = parse_config(
        {
            "model": model.model_dump(mode="json"),
            "data": {"train": "-"},
            "training": {**training, "sequence_length": model.max_position_embeddings},
        }
    )
    # Not through the environment: what a launcher's RANK and WORLD_SIZE say is not about this model.
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        topology.start_processes(config)
        yield config
    finally:
        topology.stop_processes()


def _boxes(model: GPT) -> list[Holding]:
    """The parameters' own memory as boxes of the checkpoint's tensors."""
    found = []
    for sharded in sharded_parameters([model]):
        flat = sharded.parameter.data.view(-1)
        for box in sharded.boxes:
            values = flat[box.start : box.start + box.numel].view(box.shape)
            sizes = (torch.Size(box.global_shape), torch.Size(box.offset), torch.Size(box.shape))
            found.append(Holding(WEIGHTS + box.key, *sizes, values))
    return found
