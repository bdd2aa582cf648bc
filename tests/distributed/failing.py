"""A worker of two that fails on one rank while the other waits for it: `failing.py CASE FOLDER`.

Just before it fails it writes the time into FOLDER/failed-at.
"""

import ctypes
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from bigtrain.errors import DataError
from bigtrain.training import faults
from bigtrain.training.signals import StopRequest

SEQUENCE = 16
case, folder = sys.argv[1], Path(sys.argv[2])
rank = int(os.environ["RANK"])


def about_to_fail() -> None:
    (folder / "failed-at").write_text(str(time.time()))


def before_the_start() -> None:
    """Rank 1 does not come to the meeting of the processes, where rank 0 waits and is deaf to SIGTERM, as in a run."""
    if rank == 0:
        with StopRequest():
            join()
    while not can_connect(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])):
        select.select([], [], [], 0.05)
    about_to_fail()
    raise ImportError("a library is broken on this node")


def can_connect(address: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((address, port)) == 0


def join() -> Any:
    """Processes over gloo, without the engines, whose import takes seconds."""
    import torch.distributed as dist

    dist.init_process_group("gloo")
    return dist


def beside_a_collective(failing_rank: int, fail: Callable[[], None]) -> None:
    """`fail` on one rank, while the other waits in an all-reduce."""
    import torch

    dist = join()
    dist.barrier()
    if rank == failing_rank:
        about_to_fail()
        fail()
    dist.all_reduce(torch.zeros(1000))


def out_of_memory() -> None:
    """With a thread that the end of Python would wait for."""
    threading.Thread(target=threading.Event().wait).start()
    bytearray(1 << 60)


def mistake() -> None:
    raise DataError("shard-00003.arrow is damaged")


def crash() -> None:
    ctypes.string_at(0)


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def in_the_data_thread() -> None:
    from bigtrain.data.loader import prefetch

    def load(position: int) -> int:
        return int.from_bytes((folder / "failed-at" if position < 3 else folder / "no shard").read_bytes())

    for _ in prefetch(load, range(10)):
        pass


def in_the_engine() -> None:
    """Building it, a step, a save, a write beside training."""
    import torch

    from bigtrain.checkpoint import store
    from bigtrain.checkpoint.catalog import TrainingState
    from bigtrain.checkpoint.saver import Saver
    from bigtrain.config import parse_config
    from bigtrain.data.loader import CausalBatch
    from bigtrain.parallel import topology
    from bigtrain.parallel.engine import Engine

    config = parse_config(
        {
            "model": {
                "vocab_size": 64,
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "intermediate_size": 1 << 45 if case == "build" and rank == 1 else 128,
            },
            "data": {"train": "unused"},
            "parallel": {"zero_stage": 3 if case == "step-zero-3" else 1},
            "training": {
                "output_dir": "unused",
                "steps": 1,
                "global_batch_size": 4,
                "sequence_length": SEQUENCE,
                "precision": "fp32",
            },
        }
    )
    topology.start_processes(config)
    about_to_fail()
    engine = Engine(config, topology.start_processes(config))
    tokens = torch.zeros(1, SEQUENCE, dtype=torch.int64)
    good = CausalBatch(tokens, tokens, torch.ones(1, SEQUENCE), torch.arange(SEQUENCE)[None])
    bad = CausalBatch(tokens + 1_000_000, tokens, good.loss_mask, good.position_ids)
    about_to_fail()
    engine.train_step([good, bad if case.startswith("step") and rank == 1 else good], 4 * SEQUENCE, 1e-3, 0)
    state, checkpoints = TrainingState(step=1, position=4, tokens=64), folder / "checkpoints"
    if case == "save":
        checkpoints.write_text("")
    store.save(checkpoints, engine, state, {}, keep_last=0)
    saver = Saver(checkpoints if rank == 0 else Path("/nowhere"), engine, {}, keep_last=0)
    about_to_fail()
    saver.save(replace(state, step=2))
    for step in range(1000):
        engine.train_step([good, good], 4 * SEQUENCE, 1e-3, step)
        saver.poll()


CASES: dict[str, Callable[[], None]] = {
    "start": before_the_start,
    "memory": lambda: beside_a_collective(1, out_of_memory),
    "data": lambda: beside_a_collective(1, in_the_data_thread),
    "mistake": lambda: beside_a_collective(1, mistake),
    "crash": lambda: beside_a_collective(0, crash),
    "killed": lambda: beside_a_collective(1, killed),
}

try:
    faults.catch_crashes()
    CASES.get(case, in_the_engine)()
except Exception as error:
    faults.leave(error)
