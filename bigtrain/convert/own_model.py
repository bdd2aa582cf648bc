"""BigTrain's own model: out of a checkpoint, on this process or on several, or as names and shapes without memory."""

from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory

from bigtrain.checkpoint.catalog import Checkpoint
from bigtrain.checkpoint.planners import Holding
from bigtrain.config import Config, ModelConfig, ParallelConfig, parse_config, validate
from bigtrain.config.tasks import FinetuneConfig
from bigtrain.convert.source import model_config
from bigtrain.convert.weights import WEIGHTS, read_into
from bigtrain.errors import UserError
from bigtrain.models.build import Chunk, build_model
from bigtrain.models.heads import TaskChunk, build_for_task
from bigtrain.models.sharding import sharded_parameters
from bigtrain.parallel import topology

ALONE = ParallelConfig()


@contextmanager
def own_model(
    checkpoint: Checkpoint,
    parallel: ParallelConfig = ALONE,
    precision: Literal["fp32", "bf16"] = "fp32",
    but: Container[str] = (),
    task: FinetuneConfig | None = None,
) -> Iterator[Any]:
    """This process's part of the model, ready to be called; the world ends with the block.

    Alone a GPT maps [b, s] token ids and positions to [b, s, vocab_size] logits by `model(input_ids, positions, None)`;
    any architecture has `predictions`, see :mod:`bigtrain.models.build`.

    Args:
        checkpoint: Where the weights lie.
        parallel: How tensor and pipeline parallel split the model; more than one process must have been started
            for it by a launcher.
        precision: Type of the weights and of what is computed with them.
        but: Names of weights that are not read, and hold nothing.
        task: What the model was fine-tuned for, if that gave it another head.

    Raises:
        ConfigError: The model cannot be split so.
        CheckpointError: A tensor or file is missing, damaged or of another shape.
    """
    config = _config(model_config(checkpoint), parallel, precision)
    with _world(config):
        (model,) = build_model(config) if task is None else _with_head(config, task)
        with topology.together():
            read_into(checkpoint, [box for box in _boxes(model) if box.name.removeprefix(WEIGHTS) not in but])
        yield model.eval()


def own_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and global shape of every weight that a checkpoint of this model holds."""
    config = _config(model, ALONE, "fp32")
    found = {}
    with _world(config), torch.device("meta"):
        (built,) = build_model(config)
        for entry in built.sharded_state_dict().values():
            if isinstance(entry, ShardedTensor):
                found[entry.key] = tuple(entry.global_shape)
            elif isinstance(entry, ShardedTensorFactory):
                found |= {part.key: tuple(part.global_shape) for part in entry.build()}
    return found


@contextmanager
def _world(config: Config) -> Iterator[None]:
    """The process groups of the block."""
    size = config.parallel.model_parallel_size
    if size == 1:
        # Not through the environment: what a launcher's RANK and WORLD_SIZE say is not about this model.
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    else:
        validate(config, size)
    try:
        topology.start_processes(config)
        yield
    except BaseException as error:
        if size == 1 or isinstance(error, UserError):  # which every rank raises: nobody is waiting
            topology.stop_processes()
        raise
    topology.stop_processes()


def _config(model: ModelConfig, parallel: ParallelConfig, precision: str) -> Config:
    """The model, split; data and training are not used."""
    training = {"output_dir": "-", "steps": 1, "global_batch_size": 1, "precision": precision}
    return parse_config(
        {
            "model": model.model_dump(mode="json"),
            "data": {"train": "-"},
            "parallel": parallel.model_dump(mode="json"),
            "training": {**training, "sequence_length": model.longest_sequence},
        }
    )


def _with_head(config: Config, task: FinetuneConfig) -> Sequence[Any]:
    return build_for_task(config.model_copy(update={"finetune": task}), len(task.labels or ()))


def _boxes(model: Chunk | TaskChunk) -> list[Holding]:
    """The parameters' own memory as boxes of the checkpoint's tensors."""
    found = []
    for sharded in sharded_parameters([model]):
        flat = sharded.parameter.data.view(-1)
        for box in sharded.boxes:
            values = flat[box.start : box.start + box.numel].view(box.shape)
            sizes = (torch.Size(box.global_shape), torch.Size(box.offset), torch.Size(box.shape))
            found.append(Holding(WEIGHTS + box.key, *sizes, values))
    return found
