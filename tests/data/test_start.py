"""The first batch of a dataset of any size is there at once. Bounds are on CPU time: the machine may be busy."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "data_start.py"


def test_the_first_batch_of_a_trillion_tokens() -> None:
    command = [sys.executable, str(SCRIPT), "--starts=1", "--without-torch"]
    result = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert (result["tokens"], result["shards"]) == (10**12, 10**5)
    found = result["samples"]
    assert found["cpu_seconds"] < 2
    assert found["peak_bytes_above_interpreter"] < 200e6
