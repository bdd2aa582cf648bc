"""Seconds that a checkpoint costs: bigtrain's stall, save and load beside plain `torch.distributed.checkpoint`.

All on the same bytes in one run, in turn: a GPT's float32 weights and both of Adam's moments. Plain is what a careful
user writes, `dcp.save` and `dcp.load` of whole tensors, split over the processes, with files synced to the disk as ours
are. `stall_ratio` is our stall when saving beside training over our synchronous save, medians of the rounds after the
first, which makes the host memory and the plan; `least_stall_ratio` is that of the quickest, which other programs on
the machine disturb less. Nothing trains meanwhile: the stall is the copy, and does not depend on it. Memory is what a
save adds to rank 0 at most. Prints one JSON line.

    python benchmarks/checkpoint.py --nproc 2
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from bigtrain.checkpoint import catalog, store
from bigtrain.checkpoint.catalog import TrainingState
from bigtrain.checkpoint.holdings import holdings
from bigtrain.checkpoint.saver import Saved, Saver
from bigtrain.config import Config, parse_config
from bigtrain.launch.environment import World
from bigtrain.launch.local import run_workers
from bigtrain.models.size import parameter_count
from bigtrain.parallel import topology
from bigtrain.parallel.engine import Engine

Seconds = dict[str, list[float]]


def main() -> None:
    options = parse_options()
    if "RANK" not in os.environ:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            command = [sys.executable, *sys.argv, "--folder", folder]
            sys.exit(run_workers(command, World(options.nproc)))
    config = run_config(options)
    engine = Engine(config, topology.start_processes(config))
    folder = Path(options.folder)
    held = holdings(engine, to_save=True)
    copied = sum(holding.values.nbytes for holding in held)
    seconds, memory = race(engine, folder, options.rounds)
    if topology.is_first_rank():
        least = {name: min(values[1:]) for name, values in seconds.items()}
        medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
        result = {
            "benchmark": "checkpoint",
            "stall_ratio": medians["stall"] / medians["save"],
            "least_stall_ratio": least["stall"] / least["save"],
            "save_ratio": medians["save"] / medians["plain_save"],
            "load_ratio": medians["load"] / medians["plain_load"],
            "median_seconds": medians,
            "least_seconds": least,
            "first_seconds": {name: values[0] for name, values in seconds.items()},
            "all_seconds": seconds,
            "memory_added_bytes": memory,
            "copied_bytes": copied,
            "checkpoint_bytes": sum(file_sizes(folder / "ours")),
            "plain_bytes": sum(file_sizes(folder / "plain")),
            "parameters": parameter_count(config.model),
            "rounds": options.rounds,
            "processes": options.nproc,
            "zero_stage": config.parallel.zero_stage,
            "threads": torch.get_num_threads(),
            "load_average": os.getloadavg()[0],
            "versions": {name: version(name) for name in ("torch", "megatron-core", "deepspeed")},
        }
        print(json.dumps(result))
    topology.stop_processes()


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--nproc", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=6, help="of each; the first is not counted")
    parser.add_argument("--hidden-size", type=int, default=384)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--zero-stage", type=int, default=1)
    parser.add_argument("--folder", help="disk to write to; default: that of temporary files")
    return parser.parse_args()


def run_config(options: argparse.Namespace) -> Config:
    model = {
        "vocab_size": options.vocab_size,
        "hidden_size": options.hidden_size,
        "num_hidden_layers": options.layers,
        "num_attention_heads": options.hidden_size // 64,
        "tie_word_embeddings": True,
    }
    training = {
        "output_dir": "unused",
        "steps": 1,
        "global_batch_size": options.nproc,
        "sequence_length": 16,
        "precision": "fp32",
    }
    parallel = {"zero_stage": options.zero_stage}
    return parse_config({"model": model, "data": {"train": "x"}, "parallel": parallel, "training": training})


def race(engine: Engine, folder: Path, rounds: int) -> tuple[Seconds, dict[str, int]]:
    """Everything in turn, `rounds` times; seconds until the slowest rank is done, and memory added on this one."""
    beside: list[Saved] = []
    in_place: list[Saved] = []
    plain = plain_state(engine)
    ours, synchronous = folder / "ours", folder / "synchronous"
    seconds: Seconds = {}
    memory: dict[str, int] = {}

    def take(name: str, work: Callable[[], Any]) -> None:
        took, added = measure(work)
        seconds.setdefault(name, []).append(took)
        if len(seconds[name]) <= 2:  # the first makes the copy's memory; the second is as all others
            memory[f"{name}_{'first' if len(seconds[name]) == 1 else 'later'}"] = added

    with (
        closing(Saver(ours, engine, {}, keep_last=1, completed=beside.append)) as saver,
        closing(
            Saver(synchronous, engine, {}, keep_last=1, in_background=False, completed=in_place.append)
        ) as synchronous_saver,
    ):
        for number in range(1, rounds + 1):
            state = TrainingState(number, 0, 0)
            take("stall", partial(saver.save, state))
            take("write_beside", saver.finish)
            take("save", partial(synchronous_saver.save, state))
            take("plain_save", partial(plain_save, plain, folder / "plain" / f"step-{number}"))
            take("load", lambda: store.load(newest(ours), engine))
            take("plain_load", partial(plain_load, plain, folder / "plain" / f"step-{number}"))
    return seconds, memory


def newest(folder: Path) -> catalog.Checkpoint:
    found = catalog.newest(folder)
    assert found is not None
    return found


def measure(work: Callable[[], Any]) -> tuple[float, int]:
    Path("/proc/self/clear_refs").write_text("5")  # the highest point counts from here
    before = resident_bytes("VmRSS")
    dist.barrier()
    began = time.perf_counter()
    work()
    added = resident_bytes("VmHWM") - before
    dist.barrier()
    return time.perf_counter() - began, added


def plain_state(engine: Engine) -> dict[str, torch.Tensor]:
    """This process's boxes as whole tensors of their own: the same bytes, in plain clothes."""
    return {
        f"{engine.layout.rank}.{holding.name}.{holding.offset}": holding.values.clone()
        for holding in holdings(engine, to_save=True)
    }


def plain_save(state: dict[str, torch.Tensor], folder: Path) -> None:
    dcp.save(state, storage_writer=dcp.FileSystemWriter(folder, sync_files=True))


def plain_load(state: dict[str, torch.Tensor], folder: Path) -> None:
    dcp.load(state, checkpoint_id=folder)


def file_sizes(folder: Path) -> list[int]:
    """Of the newest checkpoint."""
    newest = max(folder.glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")))
    return [path.stat().st_size for path in newest.iterdir()]


def resident_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    main()
