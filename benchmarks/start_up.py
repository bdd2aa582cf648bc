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

from bigtrain.config import load_config, to_yaml, validate
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
FEW_SHARDS = 20
ACTED_WORLD = 512
ACTED_LAYOUT = ("parallel.tensor=4", "parallel.pipeline=2")
ACTED_RANKS = (0, 1, 8, 511)
CALLS = "%file,getdents64,clone,clone3,fork,vfork"
STRACE = f"strace -f --seccomp-bpf -v -qq -y -s 4096 -e trace={CALLS} -o".split()
OF_RUN = {
    "configuration": "configuration",
    "manifest": "`dataset.json`, tokenizer",
    "checkpoint": "checkpoints",
    "records": "records, logs",
    "listed": "folders listed",
    "asked": "other calls",
    "shards": "shards",
}
OF_PYTHON = {"python": "opened", "python-asked": "other calls", "home": "opened in the home folder"}
"""What a file that is opened belongs to, and how a table calls it."""
BEGIN, END = "<!-- start-up: begin -->", "<!-- start-up: end -->"
_LINE = re.compile(r"^(\d+) +(.*)$")
_OPENS = re.compile(r"^(?:openat|open|creat)\(")
_CHILD = re.compile(r"(?:clone|clone3|fork|vfork)(?:\(| resumed).*= (\d+)$")
_PATH = re.compile(r'^\w+\((?:(?:AT_FDCWD|\d+)<([^>]*)>, )?"([^"]*)"')
_LISTED = re.compile(r"^getdents64\(\d+<([^>]*)>")
_RANK = re.compile(r'^execve\(.*"RANK=(\d+)"')


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--nproc", type=int, nargs="+", default=[4], help="processes of the real runs")
    parser.add_argument("--shards", type=int, default=2000, help="shards of their dataset")
    parser.add_argument("--broadcast-shards", type=int, default=10**5)
    parser.add_argument("--table", type=Path, help="page to write the tables into, between its marks")
    parser.add_argument("--act", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--broadcast", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.act:
        act(options.act)
    elif options.broadcast:
        broadcast(options.broadcast)
    else:
        found = measure(options.nproc, options.shards, options.broadcast_shards)
        if options.table:
            write_table(options.table, found)
        print(json.dumps(found))


def measure(worlds: list[int], shards: int, broadcast_shards: int) -> dict[str, Any]:
    """Everything, by real processes."""
    runs: list[dict[str, Any]] = []

    def run(what: str, world: int, count: int, opened: dict[str, dict[str, int]]) -> None:
        runs.append({"what": what, "world": world, "shards": count, "opened": opened})
        sys.stderr.write(f"{json.dumps(runs[-1])}\n")

    for nproc, count in [(2, FEW_SHARDS), *((nproc, shards) for nproc in worlds)]:
        with tempfile.TemporaryDirectory(prefix="start-up-") as name:
            folder = Path(name)
            prepare(folder, count)
            run("start", nproc, count, real_run(folder, nproc, 1))
            run("resume", nproc, count, real_run(folder, nproc, 2))
            if nproc == worlds[-1]:
                run("resume", ACTED_WORLD, count, acted_run(folder))
    return {"benchmark": "start_up", "runs": runs, "broadcast": sent(broadcast_shards), "cores": os.cpu_count()}


def sent(shards: int) -> dict[str, Any]:
    """What it takes to hand a dataset of so many shards from rank 0 to three others."""
    with tempfile.TemporaryDirectory(prefix="start-up-") as name:
        data_start.make(Path(name, "data"), shards, 10**5)
        command = [sys.executable, __file__, "--broadcast", name]
        assert run_workers(command, World(4), log_dir=Path(name)) == 0
        result: dict[str, Any] = json.loads(Path(name, "result.json").read_text())
        return result


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
    return counted(folder, command)


def acted_run(folder: Path) -> dict[str, dict[str, int]]:
    """The same of some ranks of many, which go on from the checkpoint that lies there."""
    found: dict[str, dict[str, int]] = {}
    with tempfile.TemporaryDirectory() as local:
        given = load_config(folder / "config/run.yaml", ["training.steps=9", *ACTED_LAYOUT])
        Path(local, "input").write_text(to_yaml(given))
        for rank in ACTED_RANKS:
            env = {"RANK": str(rank), "LOCAL_RANK": str(rank % 8), "WORLD_SIZE": str(ACTED_WORLD)}
            if rank % 8:  # as a launcher says it to all but the first of a node
                env["BIGTRAIN_LOG"] = f"{local}/rank-{rank:05d}.log"
            command = [sys.executable, __file__, "--act", local]
            found |= counted(folder, command, env, Path(local, "input"))
            sys.stderr.write(f"{json.dumps(found)}\n")
    return {process: opened for process, opened in found.items() if process.startswith("rank")}


def counted(
    folder: Path, command: list[str], env: dict[str, str] | None = None, stdin: Path = Path(os.devnull)
) -> dict[str, dict[str, int]]:
    """Run a command; of it (`launcher`) and of every rank in it how many files it opens of each kind."""
    words = [f"{name}={value}" for name, value in (env or {}).items()]
    with tempfile.NamedTemporaryFile() as trace, stdin.open() as given:
        traced = [*STRACE, trace.name, "env", *words, *command]
        subprocess.run(traced, check=True, stdin=given, stdout=subprocess.DEVNULL)
        return counts(Path(trace.name), folder)


def counts(trace: Path, folder: Path) -> dict[str, dict[str, int]]:
    """Opens by process and kind; `asked` are other calls that name a file of the run or of Python."""
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
        of = found.setdefault(name, Counter(dict.fromkeys((*OF_RUN, *OF_PYTHON), 0)))
        if m := _LISTED.match(call):
            of["listed"] += m[1].startswith(str(folder)) and (name, m[1]) not in listed
            listed.add((name, m[1]))
        elif (m := _PATH.match(call)) and (kind := kind_of(Path(m[1] or ".", m[2]), folder)):
            if _OPENS.match(call):
                of[kind] += 1
            elif kind == "python":
                of["python-asked"] += 1
            elif kind not in ("home", "shards"):
                of["asked"] += 1
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


def act(local: Path) -> None:
    """Be a rank of `ACTED_WORLD` from the configuration to the first batch; what rank 0 broadcasts is in `local`."""
    import torch.distributed as dist
    from torch.testing._internal.distributed import fake_pg

    from bigtrain.parallel import compat, topology
    from bigtrain.training import loop, pretrain
    from bigtrain.training.batches import BatchReader
    from bigtrain.training.signals import StopRequest
    from bigtrain.training.watchdog import Watchdog

    rank = int(os.environ["RANK"])
    sent = iter(sorted(local.glob("sent-*")))

    def pass_on(held: list[Any], **_: Any) -> None:
        if rank == 0:
            (local / f"sent-{len(list(local.glob('sent-*')))}").write_bytes(pickle.dumps(held))
        else:
            held[:] = pickle.loads(next(sent).read_bytes())

    dist.broadcast_object_list = pass_on  # type: ignore[assignment]
    compat.install()
    dist.init_process_group("fake", rank=rank, world_size=ACTED_WORLD, store=fake_pg.FakeStore())
    topology._control_group = dist.new_group(backend="fake")
    topology._start_deepspeed()
    config = load_config("-")
    validate(config, ACTED_WORLD)
    with StopRequest() as stop:
        layout = topology.start_processes(config)
        inputs = pretrain._inputs(config, layout, pretrain.PRETRAINING)
        with Watchdog(60, Path(config.training.output_dir), rank, ACTED_WORLD) as watchdog:
            run = pretrain._start(config, layout, inputs, pretrain.PRETRAINING, stop, watchdog)
            assert run.state.step > 0
            assert len(next(loop._batches(run, BatchReader(config, layout, run.samples)))) == 1
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
    """Put the tables into the page, between its marks: of each run the launcher, the first rank and the last."""
    before, begin, rest = page.read_text().partition(BEGIN)
    assert begin, f"{page} has no {BEGIN}"
    lines = []
    for title, kinds in (("of the run", OF_RUN), ("of Python", OF_PYTHON)):
        lines += [f"| processes, shards | files {title}, by process | {' | '.join(kinds.values())} |"]
        lines += ["|---|---|" + "---|" * len(kinds)]
        for run in found["runs"]:
            shown = [name for name in run["opened"] if name in ("launcher", "rank 0")] + [list(run["opened"])[-1]]
            for process in shown:
                counted = (f"{run['opened'][process][kind]:,}" for kind in kinds)
                which = f"{run['world']}, {run['shards']:,} | {run['what']}: {process}"
                lines.append(f"| {which} | {' | '.join(counted)} |")
        lines.append("")
    b = found["broadcast"]
    lines.append(
        f"Of {b['shards']:,} shards (a `dataset.json` of {b['manifest_bytes'] / 1e6:.0f} MB, which rank 0 reads and "
        f"compares with the files in {b['seconds_to_open']:.2f} s) {b['bytes'] / 1e6:.1f} MB are sent, and "
        f"{b['processes']} "
        f"processes on {found['cores']} cores have them in use after {b['seconds']:.2f} s, over gloo."
    )
    table = "\n".join([BEGIN, *lines, END])
    page.write_text(f"{before}{table}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
