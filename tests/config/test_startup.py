"""A mistake in a configuration is told before anything heavy is loaded."""

import json
import resource
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import json, sys
from bigtrain.config import load_config, validate
from bigtrain.errors import ConfigError
try:
    validate(load_config(sys.argv[1], sys.argv[2:]), world_size=6)
except ConfigError as error:
    print(json.dumps({"told": str(error), "modules": sorted(sys.modules)}))
"""
HEAVY = ["torch", "megatron", "deepspeed", "transformers", "numpy", "pyarrow", "tokenizers", "sentencepiece", "wandb"]


def cpu_seconds() -> float:
    """Of all processes that were started here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def refuse(*arguments: str) -> tuple[str, set[str], float]:
    """What a fresh interpreter tells, has loaded, and took in seconds of a processor, which others on the machine do
    not make longer."""
    start = cpu_seconds()
    done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=True)
    seconds = cpu_seconds() - start
    answer = json.loads(done.stdout)
    return answer["told"], set(answer["modules"]), seconds


def test_a_refusal_takes_under_a_second_and_loads_no_engine(sound: Path) -> None:
    seconds = []
    for overrides in (["parallel.tensor=4"], ["parallel.tenser=2"], ["training.steps=many"]):  # the machine may be busy
        told, modules, taken = refuse(str(sound), *overrides)
        assert overrides[0].split("=")[0] in told or "tensor(4)" in told
        assert not modules.intersection(HEAVY)
        seconds.append(taken)
    assert min(seconds) < 1.0
