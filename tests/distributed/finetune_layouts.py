"""A worker of `task_cases`: fine-tunes. Found are [[loss, gradient norm], ...]."""

from typing import Any

import task_cases

from bigtrain.config import Config
from bigtrain.finetune.batches import TaskBatches
from bigtrain.finetune.inputs import TaskInputs
from bigtrain.parallel.engine import Engine
from bigtrain.training.batches import BatchReader
from bigtrain.training.schedule import learning_rate


def train(case: dict[str, Any], config: Config, inputs: TaskInputs, engine: Engine) -> list[tuple[float, float]]:
    read = BatchReader(config, engine.layout, TaskBatches(inputs.train, config, shuffle=True))
    history = []
    for step in range(config.training.steps):
        batches = read(step * config.training.global_batch_size)
        result = engine.train_step(batches, read.targets(batches), learning_rate(config, step), step)
        history.append((float(result.loss), float(result.grad_norm)))
    return history


task_cases.run(train)
