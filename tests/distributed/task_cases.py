"""What the workers have in common that try several cases of a task, one after the other, in one set of processes.

They read a JSON file of cases ({"name", "config", "checkpoint", ...}; the checkpoint has the head's weights, too) and
write what rank 0 found to another, by the cases' names.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bigtrain.checkpoint import catalog, store
from bigtrain.config import Config, parse_config, validate
from bigtrain.finetune.finetune import task_engine
from bigtrain.finetune.inputs import TaskInputs, open_task
from bigtrain.parallel import topology
from bigtrain.parallel.engine import Engine

Tried = Callable[[dict[str, Any], Config, TaskInputs, Engine], Any]


def run(tried: Tried) -> None:
    """Try every case of the file that the command line names."""
    cases, results = Path(sys.argv[1]), Path(sys.argv[2])
    found = {case["name"]: _found(case, tried) for case in json.loads(cases.read_text())}
    if topology.is_first_rank():
        results.write_text(json.dumps(found))
    topology.stop_processes()


def _found(case: dict[str, Any], tried: Tried) -> Any:
    config = parse_config(case["config"])
    layout = topology.start_processes(config)
    validate(config, layout.world_size)
    inputs = open_task(config)
    engine = task_engine(config, layout, inputs)
    store.load_weights(catalog.read(Path(case["checkpoint"])), engine)
    found = tried(case, config, inputs, engine)
    engine.close()
    return found
