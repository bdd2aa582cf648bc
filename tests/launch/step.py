"""Stands where `srun` stands: starts a program once for each node, all on this machine, as a step of Slurm's would.

ON_NODES in the environment makes nodes differ: {"n3": {"cwd": …, "env": {…}, "silent": true}}. What reads
/proc/self/cwd/… then finds on n3 what is in another folder.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from typing import IO

_ONE_AT_A_TIME = threading.Lock()


def main() -> int:
    options = [word for word in sys.argv[1:] if word.startswith("--")]
    given = dict(word[2:].partition("=")[::2] for word in options)
    program = sys.argv[1 + len(options) :]
    nodes = given["nodelist"].split(",")
    step = {
        "SLURM_JOB_ID": os.environ["SLURM_JOB_ID"],
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_NODES": given["nodes"],
        "SLURM_STEP_NUM_TASKS": given["ntasks"],
        "SLURM_STEP_NODELIST": given["nodelist"],
        "MASTER_ADDR": "127.0.0.1",
    }
    differs = json.loads(os.environ.get("ON_NODES", "{}"))
    tasks, readers = [], []
    for number, node in enumerate(nodes):
        of_it = differs.get(node, {})
        task = subprocess.Popen(
            ["sleep", "600"] if of_it.get("silent") and program != ["true"] else program,
            env={**os.environ, **step, "SLURM_NODEID": str(number), "SLURMD_NODENAME": node, **of_it.get("env", {})},
            cwd=of_it.get("cwd"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        tasks.append(task)
        for source, to in ((task.stdout, sys.stdout), (task.stderr, sys.stderr)):
            readers.append(threading.Thread(target=label, args=(number, source, to)))
            readers[-1].start()
    signal.signal(signal.SIGTERM, lambda *_: [task.kill() for task in tasks])
    for task in tasks:
        task.wait()
    for reader in readers:
        reader.join()
    return 0


def label(number: int, source: IO[str] | None, to: IO[str]) -> None:
    for line in source or ():
        with _ONE_AT_A_TIME:
            to.write(f"{number}: {line}")
            to.flush()


if __name__ == "__main__":
    sys.exit(main())
