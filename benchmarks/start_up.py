"""Which files each process of a run opens until its first step, counted by strace: also what C and C++ open.

Real runs of `--nproc` processes, started and started again from the checkpoint, the launcher counted too. And ranks of
512, each acted by a process of its own that calls what a run calls: it gets what rank 0 would broadcast, builds its
part of the model, reads the checkpoint, and its first batch. Of the collectives it sees its own part alone (torch's
`fake` backend). What rank 0 broadcasts is measured besides, for 10^5 shards, over gloo between real processes.
Prints one JSON line; --table writes the tables into a page, between its marks.

    python benchmarks/start_up.py --table docs/slurm.md
"""

import argparse
import json
import os
import pickle
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import data_start

from bigtrain.launch.environment import World
from bigtrain.launch.local import run_workers

CONFIG = """
extends: base.yaml
data: {{train: {folder}/data}}
training: {{output_dir: {folder}/run, steps: 1, global_batch_size: 64, micro_batch_size: 1, sequence_length: 16,
            precision: fp32}}
parallel: {{zero_stage: 1}}
logging: {{wandb: disabled}}
"""
BASE = "model: {vocab_size: 384, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 4}\n"
ACTED_WORLD = 512
ACTED_LAYOUT = ("parallel.tensor=4", "parallel.pipeline=2")
ACTED_RANKS = (0, 1, 8, 511)
STRACE = (
    "strace",
    "-f",
    "--seccomp-bpf",
    "-v",
    "-qq",
    "-y",
    "-s",
    "4096",
    "-e",
    "trace=%file,getdents64,clone,clone3,fork,vfork",
)
KINDS = ("configuration", "manifest", "checkpoint", "records", "shards", "python", "home")
"""What a file belongs to; all but `shards` are counted until the end of the first step and its checkpoint."""
BEGIN, END = "<!-- start-up: begin -->", "<!-- start-up: end -->"
_LINE = re.compile(r"^(\d+) +(.*)$")
_OPENS = re.compile(r"^(?:openat|open|creat)\(")
_CHILD = re.compile(r"(?:clone|clone3|fork|vfork)(?:\(| resumed).*= (\d+)$")
_PATH = re.compile(r'^\w+\((?:(?:AT_FDCWD|\d+)<([^>]*)>, )?"([^"]*)"')
_LISTED = re.compile(r"^getdents64\(\d+<([^>]*)>")
_RANK = re.compile(r'^execve\(.*"RANK=(\d+)"')


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--nproc", type=int, nargs="+", default=[1, 2, 4], help="processes of the real runs")
    parser.add_argument("--shards", type=int, nargs="+", default=[20, 2000], help="shards of their datasets")
    parser.add_argument("--broadcast-shards", type=int, default=10**5)
    parser.add_argument("--table", type=Path, help="page to write the tables into, between its marks")
    parser.add_argument("--act", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--broadcast", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.act is not None:
        act(options.act)
    elif options.broadcast:
        broadcast(options.broadcast)
    else:
        found = measure(options.nproc, options.shards, options.broadcast_shards)
        if options.table:
            write_table(options.table, found)
        print(json.dumps(found))


def measure(worlds: list[int], shards: list[int], broadcast_shards: int) -> dict[str, Any]:
    """Everything, by real processes."""
    found: dict[str, Any] = {"benchmark": "start_up", "runs": []}
    for count in shards:
        with tempfile.TemporaryDirectory(prefix="start-up-") as name:
            folder = Path(name)
            prepare(folder, count)
            for nproc in worlds:
                for what in ("start", "resume"):
                    by_process = real_run(folder, nproc, 1 if what == "start" else 2)
                    found["runs"].append({"what": what, "world": nproc, "shards": count, "opened": by_process})
                if nproc != worlds[-1]:
                    subprocess.run(["rm", "-r", folder / "run"], check=True)
            by_process = acted_run(folder)
            found["runs"].append({"what": "resume", "world": ACTED_WORLD, "shards": count, "opened": by_process})
    with tempfile.TemporaryDirectory(prefix="start-up-") as name:
        data_start.make(Path(name, "data"), broadcast_shards, 10**5)
        command = [sys.executable, __file__, "--broadcast", name]
        assert run_workers(command, World(max(worlds)), log_dir=Path(name)) == 0
        found["broadcast"] = json.loads(Path(name, "result.json").read_text())
    return {**found, "cores": os.cpu_count()}


def prepare(folder: Path, shards: int) -> None:
    """A dataset, and a configuration of two files."""
    data_start.make(folder / "data", shards, 10**5)
    (folder / "config").mkdir()
    (folder / "config/base.yaml").write_text(BASE)
    (folder / "config/run.yaml").write_text(CONFIG.format(folder=folder))


def real_run(folder: Path, nproc: int, steps: int) -> dict[str, dict[str, int]]:
    """What the launcher and each rank open of every kind of file."""
    words = [str(folder / "config/run.yaml"), f"training.steps={steps}", f"parallel.tensor={min(nproc, 2)}"]
    command = [sys.executable, "-m", "bigtrain", "pretrain", *words, "--nproc", str(nproc)]
    return counted(folder, command, {})


def acted_run(folder: Path) -> dict[str, dict[str, int]]:
    """The same of some ranks of many, which go on from the checkpoint that lies there."""
    found = {}
    for rank in ACTED_RANKS:
        env = {"RANK": str(rank), "LOCAL_RANK": str(rank % 8), "WORLD_SIZE": str(ACTED_WORLD), "FOLDER": str(folder)}
        with tempfile.TemporaryDirectory() as local:
            if rank % 8:
                env["BIGTRAIN_LOG"] = f"{local}/rank.log"
            found |= counted(folder, [sys.executable, __file__, "--act", str(rank)], env)
    return {process: counts for process, counts in found.items() if process.startswith("rank")}


def counted(folder: Path, command: list[str], env: dict[str, str]) -> dict[str, dict[str, int]]:
    """Run a command; of it (`launcher`) and of every rank in it how many files it opens of each kind."""
    with tempfile.NamedTemporaryFile() as trace:
        clean = {name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
        traced = [*STRACE, "-o", trace.name, "env", *(f"{name}={value}" for name, value in env.items()), *command]
        subprocess.run(traced, env=clean, check=True, stdout=subprocess.DEVNULL)
        return counts(Path(trace.name), folder)


def counts(trace: Path, folder: Path) -> dict[str, dict[str, int]]:
    """Opens by process and kind; `python-asked` are the other calls that name a file of Python's."""
    lines = [(int(m[1]), m[2]) for line in trace.open(errors="replace") if (m := _LINE.match(line))]
    parents = {int(m[1]): thread for thread, call in lines if (m := _CHILD.search(call))}
    ranks = {thread: f"rank {m[1]}" for thread, call in lines if (m := _RANK.match(call))}

    def process(thread: int) -> str:
        while thread not in ranks and thread in parents:
            thread = parents[thread]
        return ranks.get(thread, "launcher")

    found: dict[str, Counter[str]] = {}
    listed: set[tuple[str, str]] = set()
    for thread, call in lines:
        name = process(thread)
        of = found.setdefault(name, Counter(dict.fromkeys((*KINDS, "python-asked"), 0)))
        if m := _LISTED.match(call):
            if (name, m[1]) not in listed:
                listed.add((name, m[1]))
                of["listed-of-run"] += m[1].startswith(str(folder))
        elif (m := _PATH.match(call)) and (kind := kind_of(Path(m[1] or ".", m[2]), folder)):
            if _OPENS.match(call):
                of[kind] += 1
            elif kind == "python":
                of["python-asked"] += 1
            elif kind != "home":
                of["asked-of-run"] += 1
    return {name: dict(of) for name, of in sorted(found.items())}


def kind_of(path: Path, folder: Path) -> str | None:
    """What the file belongs to; None: to this machine alone."""
    if path.is_relative_to(folder):
        if path.suffix == ".arrow":
            return "shards"
        first, *rest = path.relative_to(folder).parts or ("",)
        if first == "run":
            return "checkpoint" if rest[:1] == ["checkpoints"] else "records"
        return {"config": "configuration", "data": "manifest"}.get(first)
    if any(path.is_relative_to(place) for place in (sys.prefix, sys.base_prefix, Path(__file__).parents[1])):
        return "python"
    return "home" if path.is_relative_to(Path.home()) else None


def act(rank: int) -> None:
    """Be a rank of `ACTED_WORLD` from the configuration to the first batch. What rank 0 broadcasts lies in a file."""
    import torch.distributed as dist
    from torch.testing._internal.distributed import fake_pg

    from bigtrain.config import load_config, validate
    from bigtrain.parallel import compat, topology
    from bigtrain.training import loop, pretrain
    from bigtrain.training.signals import StopRequest
    from bigtrain.training.watchdog import Watchdog

    folder = Path(os.environ["FOLDER"])
    told = Path(tempfile.gettempdir(), f"{folder.name}-told")
    sent: list[bytes] = []
    received = iter([] if rank == 0 else pickle.loads(told.read_bytes()))

    def pass_on(held: list[Any], **_: Any) -> None:
        if rank == 0:
            sent.append(pickle.dumps(held))
            told.write_bytes(pickle.dumps(sent))
        else:
            held[:] = pickle.loads(next(received))

    dist.broadcast_object_list = pass_on
    compat.install()
    dist.init_process_group("fake", rank=rank, world_size=ACTED_WORLD, store=fake_pg.FakeStore())
    topology._control_group = dist.new_group(backend="fake")
    topology._start_deepspeed()
    words = ["training.steps=9", *ACTED_LAYOUT]
    given = "resolved.yaml" if rank else "config/run.yaml"  # which its launcher hands to a worker
    config = load_config(Path(tempfile.gettempdir(), f"{folder.name}-{given}") if rank else folder / given, words)
    validate(config, ACTED_WORLD)
    with StopRequest() as stop:
        layout = topology.start_processes(config)
        inputs = pretrain._inputs(config, layout)
        with Watchdog(60, Path(config.training.output_dir), rank, ACTED_WORLD) as watchdog:
            run = pretrain._start(config, layout, inputs, stop, watchdog)
            assert run.state.step > 0
            assert len(next(loop._batches(run))) == 1
    os._exit(0)


def broadcast(folder: Path) -> None:
    """Open a dataset on rank 0 and hand it to the others, several times; what that takes goes to `result.json`."""
    import torch.distributed as dist

    from bigtrain.data.samples import Samples
    from bigtrain.data.shards import open_dataset
    from bigtrain.parallel import topology

    dist.init_process_group("gloo")
    rank = dist.get_rank()
    began = time.perf_counter()
    samples = Samples(open_dataset(folder / "data"), 2048, seed=1) if rank == 0 else None
    opened = time.perf_counter() - began
    seconds = []
    for _ in range(5):
        dist.barrier()
        began = time.perf_counter()
        received = topology.from_first(samples)
        dist.barrier()
        seconds.append(time.perf_counter() - began)
    if rank == 0:
        result = {
            "processes": dist.get_world_size(),
            "shards": len(received.dataset.manifest.shards),
            "manifest_bytes": (folder / "data/dataset.json").stat().st_size,
            "bytes": len(pickle.dumps(samples)),
            "seconds": min(seconds),
            "seconds_to_open": opened,
        }
        (folder / "result.json").write_text(json.dumps(result))
    dist.barrier()
    dist.destroy_process_group()


def write_table(page: Path, found: dict[str, Any]) -> None:
    """Put the tables into the page, between its marks."""
    raise NotImplementedError


if __name__ == "__main__":
    main()
