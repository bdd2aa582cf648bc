"""A worker: fine-tunes several cases, one after the other, in one set of processes.

Reads a JSON file of cases ({"name", "config", "checkpoint"}; the checkpoint has the head's weights, too) and writes
what rank 0 saw to another: name -> [[loss, gradient norm], ...].
"""

import json
import sys
from pathlib import Path

from bigtrain.checkpoint import catalog, store
from bigtrain.config import parse_config, validate
from bigtrain.finetune.batches import TaskBatches
from bigtrain.finetune.finetune import task_engine
from bigtrain.finetune.inputs import open_task
from bigtrain.parallel import topology
from bigtrain.training.batches import BatchReader
from bigtrain.training.schedule import learning_rate


def train(case: dict) -> list[tuple[float, float]]:
    config = parse_config(case["config"])
    layout = topology.start_processes(config)
    validate(config, layout.world_size)
    inputs = open_task(config)
    engine = task_engine(config, layout, inputs)
    store.load_weights(catalog.read(Path(case["checkpoint"])), engine)
    read = BatchReader(config, layout, TaskBatches(inputs.train, config, shuffle=True))
    history = []
    for step in range(config.training.steps):
        batches = read(step * config.training.global_batch_size)
        result = engine.train_step(batches, read.targets(batches), learning_rate(config, step), step)
        history.append((float(result.loss), float(result.grad_norm)))
    engine.close()
    return history


def main() -> None:
    cases, results = Path(sys.argv[1]), Path(sys.argv[2])
    histories = {case["name"]: train(case) for case in json.loads(cases.read_text())}
    if topology.is_first_rank():
        results.write_text(json.dumps(histories))
    topology.stop_processes()


main()
