"""A worker: writes the texts of several cases, one after the other, in one set of processes.

Reads a JSON file of cases ({"name", "config", "checkpoint", "searches"}) and writes what was found to another, on rank
0: name -> [[tokens of each text], ...], a list for each search.
"""

import json
import sys
from pathlib import Path

from bigtrain.checkpoint import catalog, store
from bigtrain.config import parse_config, validate
from bigtrain.evaluate.beams import Beams
from bigtrain.finetune.finetune import task_engine
from bigtrain.finetune.inputs import open_task
from bigtrain.finetune.write import write
from bigtrain.parallel import topology


def tokens(case: dict) -> list[list[list[int]]]:
    config = parse_config(case["config"])
    layout = topology.start_processes(config)
    validate(config, layout.world_size)
    inputs = open_task(config)
    engine = task_engine(config, layout, inputs)
    store.load_weights(catalog.read(Path(case["checkpoint"])), engine)
    end = inputs.tokenizer.eos_id
    made = []
    for how in case["searches"]:
        found = write(engine, config, inputs.train, end, Beams(**how)) or []
        made.append([[*text.ids, *[end] * text.ended] for text in found])
    engine.close()
    return made


def main() -> None:
    cases, results = Path(sys.argv[1]), Path(sys.argv[2])
    made = {case["name"]: tokens(case) for case in json.loads(cases.read_text())}
    if topology.is_first_rank():
        results.write_text(json.dumps(made))
    topology.stop_processes()


main()
