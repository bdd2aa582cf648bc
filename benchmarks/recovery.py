"""What losing a rank, a node or the job costs: steps, and seconds from the stroke to the first new step.

On a real Slurm that is started here (root, Debian; `python tests/slurm/slurm_cluster.py install`), with a tiny model on
two nodes of one process: the seconds are those of noticing, queue and start, not of a model's size. Prints one JSON
line, and with --table the table of docs/reliability.md.

    python benchmarks/recovery.py --table docs/reliability.md
"""

import argparse
import json
import os
import random
import statistics
import sys
import sysconfig
import tempfile
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/slurm"))

import strikes
from slurm_cluster import running_cluster
from strikes import Recovery, Runs, Stroke, curve, strike

from bigtrain.prepare.prepare import prepare
from bigtrain.prepare.train_tokenizer import train_sentencepiece

CONFIG = """
model: {{vocab_size: 512, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 4, max_position_embeddings: 64}}
data: {{train: {data}/train}}
training: {{output_dir: run, steps: 160, global_batch_size: 4, micro_batch_size: 2, sequence_length: 16,
           precision: fp32, step_timeout: {timeout}}}
checkpoint: {{interval: 10}}
logging: {{wandb: disabled}}
launch: {{checkup_timeout: 0}}
"""
STRIKES = {  # name: (what it is, the stroke, options of sbatch, overrides)
    "warning": ("USR1, as before a time limit", strikes.warning, [], []),
    "requeue": ("`scontrol requeue`", strikes.requeue, [], []),
    "preempt": ("preempted by a higher partition", strikes.preempt, [], []),
    "kill_rank": ("a rank killed", strikes.kill_rank, [], []),
    "stop_rank": ("a rank stopped (SIGSTOP)", strikes.stop_rank, [], []),
    "kill_node": ("a node killed", strikes.kill_node, [], []),
    "kill_first_node": ("the first node killed", strikes.kill_first_node, [], []),
    "cut_node": ("a node cut off the network", strikes.cut_node, [], []),
    "spare": (
        "a node killed, a spare one takes its place",
        strikes.kill_node,
        ["--nodes=3", "--no-kill"],
        ["launch.spare_nodes=1"],
    ),
}
BEGIN, END = "<!-- recovery: begin -->", "<!-- recovery: end -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--strikes", nargs="+", choices=list(STRIKES), default=list(STRIKES))
    parser.add_argument("--times", type=int, default=1, help="how often each is done")
    parser.add_argument("--step-timeout", type=float, default=6.0)
    parser.add_argument("--seed", type=int, default=1, help="decides the steps at which it strikes")
    parser.add_argument("--table", type=Path, help="page to write the table into, between its marks")
    options = parser.parse_args()
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    os.environ |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name, running_cluster() as cluster:
        folder = Path(name)
        library = Path(sysconfig.get_paths()["stdlib"]) / "json"
        texts = [path.read_text() for path in library.glob("*.py")]
        tokenizer = train_sentencepiece(texts, folder / "tokenizer.model", 512)
        prepare([library], folder / "data", tokenizer, pattern="*.py")
        (folder / "run.yaml").write_text(CONFIG.format(data=folder / "data", timeout=options.step_timeout))
        runs = Runs(cluster, folder, folder / "run.yaml", sys.executable)
        found = [
            strike_once(runs, f"{kind}-{number}", STRIKES[kind], chance.randrange(20, 60))
            for kind in options.strikes
            for number in range(options.times)
        ]
    print(json.dumps({"benchmark": "recovery", "step_timeout": options.step_timeout, "runs": list(map(asdict, found))}))
    if options.table:
        write_table(options.table, found)


def strike_once(runs: Runs, name: str, kind: tuple[str, Stroke, list[str], list[str]], step: int) -> Recovery:
    """Strike a run at a step, and see that it ends with the curve of one that was left in peace."""
    _, stroke, sbatch, overrides = kind
    job = runs.submit(name, *sbatch, overrides=tuple(overrides))
    job.reach(step)
    cost = strike(job, name, stroke)
    if job.end() != "COMPLETED" or curve(job.run) != runs.undisturbed():
        sys.exit(f"{name}: void, the run has not ended as the undisturbed one:\n{job.out.read_text()}")
    return cost


def write_table(page: Path, found: list[Recovery]) -> None:
    """Put the medians of each kind of strike between the page's marks."""
    lines = [
        "| what happens | steps done again | noticed | started again | checkpoint loaded | of that, reading it "
        "| first new step |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind, (words, *_) in STRIKES.items():
        rows = [cost for cost in found if cost.strike.rpartition("-")[0] == kind]
        if rows:
            lost = sorted({row.lost_steps for row in rows})
            parts = ("noticed", "restarted", "loaded", "loading", "stepped")
            clocks = [f"{statistics.median(getattr(row, part) for row in rows):.1f}" for part in parts]
            times = f" ({len(rows)} times)" if len(rows) > 1 else ""
            lines.append(
                f"| {words}{times} | {' to '.join(map(str, lost[:: len(lost) - 1 or 1]))} | {' | '.join(clocks)} |"
            )
    before, _, rest = page.read_text().partition(BEGIN)
    table = "\n".join([BEGIN, *lines, END])
    page.write_text(f"{before}{table}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
