"""A worker: trains several layouts, one after the other, in one set of processes.

Reads a JSON file of cases ({"name", "config", "checkpoint" to begin with, at its step, or "weights": one of which
these alone are taken, "repeat": how often a step has each micro-batch, "last" and "save": the step to stop after, and a
folder for a checkpoint of it}) and writes what rank 0 saw to another:
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
    first = 0
    if case.get("checkpoint"):
        checkpoint = catalog.read(Path(case["checkpoint"]))
        store.load(checkpoint, engine)
        first = checkpoint.state.step
    if case.get("weights"):
        store.load_weights(catalog.read(Path(case["weights"])), engine)
    repeat = case.get("repeat", 1)
    history = []
    last = case.get("last", config.training.steps)
    for step in range(first, last):
        batches = read(step * config.training.global_batch_size)
        targets = [count * repeat for count in read.targets(batches)]
        result = engine.train_step([*batches] * repeat, targets, learning_rate(config, step), step)
        router_losses = [] if result.router_losses is None else result.router_losses.tolist()
        history.append((float(result.loss), float(result.grad_norm), *router_losses))
    if case.get("save"):
        state = catalog.TrainingState(last, 0, 0)
        store.save(Path(case["save"]), engine, state, {}, keep_last=0)
    engine.close()
    return history


def main() -> None:
    cases, results = Path(sys.argv[1]), Path(sys.argv[2])
    histories = {case["name"]: train(case) for case in json.loads(cases.read_text())}
    if topology.is_first_rank():
        results.write_text(json.dumps(histories))
    topology.stop_processes()


main()
