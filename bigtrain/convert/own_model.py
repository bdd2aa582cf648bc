"""BigTrain's own model out of a checkpoint, whole, on this process."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from bigtrain.checkpoint.catalog import Checkpoint
from bigtrain.checkpoint.holdings import Holding
from bigtrain.config import Config, parse_config
from bigtrain.convert.source import model_config
from bigtrain.convert.weights import WEIGHTS, read_into
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
    config = _alone(checkpoint)
    # Not through the environment: what a launcher's RANK and WORLD_SIZE say is not about this model.
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        topology.start_processes(config)
        (model,) = build_gpt(config)
        read_into(checkpoint, _boxes(model))
        yield model.eval()
    finally:
        topology.stop_processes()


def _alone(checkpoint: Checkpoint) -> Config:
    """The checkpoint's model on one process; data and training are not used."""
    model = model_config(checkpoint)
    training = {"output_dir": "-", "steps": 1, "global_batch_size": 1, "precision": "fp32"}
    return parse_config(
        {
            "model": model.model_dump(mode="json"),
            "data": {"train": "-"},
            "training": {**training, "sequence_length": model.max_position_embeddings},
        }
    )


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
