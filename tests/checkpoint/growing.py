"""A worker: saves twice beside training and prints, as JSON, the bytes of the copy and what each save added at most.

`growing.py CONFIG FOLDER`; what is measured is this process's resident memory, in bytes.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

from bigtrain.checkpoint.catalog import TrainingState
from bigtrain.checkpoint.holdings import holdings
from bigtrain.checkpoint.saver import Saver
from bigtrain.config import load_config
from bigtrain.parallel import topology
from bigtrain.parallel.engine import Engine


def resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def growth(saver: Saver, state: TrainingState) -> int:
    """From before the save to its highest point."""
    Path("/proc/self/clear_refs").write_text("5")  # the highest point counts from here
    before = resident("VmRSS")
    saver.save(state)
    saver.finish()
    return resident("VmHWM") - before


config = load_config(Path(sys.argv[1]), [])
engine = Engine(config, topology.start_processes(config))
copy = sum(holding.values.nbytes for holding in holdings(engine, to_save=True))  # makes the moments
grown = {}
for name, in_background in (("in_place", False), ("first", True)):
    saver = Saver(Path(sys.argv[2]) / name, engine, {}, keep_last=1, in_background=in_background)
    grown[name] = growth(saver, TrainingState(1, 4, 64))
grown["second"] = growth(saver, replace(TrainingState(1, 4, 64), step=2))
print(json.dumps({"copy": copy, **grown}))
topology.stop_processes()
