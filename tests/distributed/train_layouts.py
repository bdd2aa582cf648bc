"""A worker: trains several layouts, one after the other, in one set of processes.

Reads a JSON file of cases ({"name", "config", "checkpoint", and "repeat": how often a step has each
micro-batch}) and writes what rank 0 saw to another:
name -> [[loss, grad_norm, and of experts the router's two losses], ...].
"""

import json
import sys
from pathlib import Path

from bigtrain.checkpoint import catalog, store
from bigtrain.config import parse_config, validate
from bigtrain.parallel import topology
from bigtrain.parallel.engine import Engine
from bigtrain.training.batches import BatchReader
from bigtrain.training.preflight import open_inputs
from bigtrain.training.schedule import learning_rate


def train(case: dict) -> list[tuple[float, ...]]:
    config = parse_config(case["config"])
    layout = topology.start_processes(config)
    validate(config, layout.world_size)
    read = BatchReader(config, layout, open_inputs(config).reads)
    engine = Engine(config, layout)
    if case.get("checkpoint"):
        store.load(catalog.read(Path(case["checkpoint"])), engine)
    repeat = case.get("repeat", 1)
    history = []
    for step in range(config.training.steps):
        batches = read(step * config.training.global_batch_size)
        targets = [count * repeat for count in read.targets(batches)]
        result = engine.train_step([*batches] * repeat, targets, learning_rate(config, step), step)
        router_losses = [] if result.router_losses is None else result.router_losses.tolist()
        history.append((float(result.loss), float(result.grad_norm), *router_losses))
    engine.close()
    return history


def main() -> None:
    cases, results = Path(sys.argv[1]), Path(sys.argv[2])
    histories = {case["name"]: train(case) for case in json.loads(cases.read_text())}
    if topology.is_first_rank():
        results.write_text(json.dumps(histories))
    topology.stop_processes()


main()
