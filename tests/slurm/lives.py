"""What befalls runs on a real Slurm, and that it does not change what they compute.

Each life is a run, or a few, from the submission to the end. Most of it is waiting: for Slurm to notice that a node is
gone, or to start a job again. So lives go on at once, beside the tests, on nodes of their own, and one run is struck
by one thing after the other.
"""

import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import strikes
from slurm_cluster import PATIENCE, wait_for
from strikes import SCRIPTS, Job, Recovery, Runs, Stroke, curve, rows, strike

import bigtrain

SEED = int(os.environ.get("BIGTRAIN_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
"""Decides at which steps runs are struck, and on which node. A life that fails tells it; set, it is the same again."""
_TUNING = """
extends: run.yaml
data: {{train: null}}
tokenizer: {{path: {folder}/tokenizer.model}}
finetune: {{task: classification, train: {folder}/examples.jsonl, validation: {folder}/examples.jsonl}}
training: {{validation_interval: 100}}
"""


def nodes_killed_at_random_steps(runs: Runs) -> list[Recovery]:
    """Five times in its life a run loses a node: the one with the batch step, the other, and three by chance."""
    chance = random.Random(f"nodes {SEED}")
    kinds = [strikes.kill_first_node, strikes.kill_node]
    kinds = chance.sample(kinds + chance.choices(kinds, k=3), 5)
    job = runs.submit("nodes-killed")
    costs = [_struck_at_random(job, stroke, chance) for stroke in kinds]
    _ended_undisturbed(job, runs)
    assert max(cost.lost_steps for cost in costs) <= 20  # two intervals: the one begun, and one that was being written
    assert [row["slurm_restart_count"] for row in job.starts] == list(range(len(kinds) + 1)), job.told
    return costs


def struck_by_all_but_a_lost_node(runs: Runs) -> list[Recovery]:
    """The warning before a time limit, a requeue, preemption, a rank killed, a rank that hangs: one after the other."""
    chance = random.Random(f"signals {SEED}")
    orderly = [strikes.warning, strikes.requeue, strikes.preempt]
    job = runs.submit("struck")
    saved = [_struck_at_random(job, stroke, chance) for stroke in orderly]
    failed = [_struck_at_random(job, stroke, chance) for stroke in (strikes.kill_rank, strikes.stop_rank)]
    _ended_undisturbed(job, runs)
    assert [cost.lost_steps for cost in saved] == [0, 0, 0]
    assert max(cost.lost_steps for cost in failed) <= 20
    assert [row["signal"] for row in job.events("preempt")] == ["SIGUSR1", "SIGTERM", "SIGTERM"]
    assert [row["slurm_restart_count"] for row in job.events("resume")] == [1, 2, 3, 3, 3]  # the last two in place
    return saved + failed


def a_node_cut_off(runs: Runs) -> list[Recovery]:
    """Nothing is closed and nothing answers any more."""
    job = runs.submit("cut-off")
    cost = _struck_at_random(job, strikes.cut_node, random.Random(f"cut {SEED}"))
    _ended_undisturbed(job, runs)
    assert job.starts[-1]["slurm_restart_count"] == 1
    return [cost]


def spare_nodes_take_over_and_then_fewer_will_do(runs: Runs) -> list[Recovery]:
    """Of four nodes two compute. A spare one replaces one that is killed, the other one that is cut off; the third loss
    leaves one, and the run goes on at half its size. Without dropout: which units it takes depends on the layout."""
    chance = random.Random(f"spare {SEED}")
    words = ("launch.spare_nodes=2", "launch.elastic=true", "model.hidden_dropout=0.0", "optimizer.lr=0.001")
    job = runs.submit("spare", "--nodes=4", "--no-kill", overrides=words)
    job.reach(1)
    _, second, third, fourth = job.nodes
    costs = [
        _struck_at_random(job, lambda _, lose=lose, node=node: lose(node), chance, name=name)
        for name, lose, node in (
            ("a node killed, a spare one takes its place", runs.cluster.kill, second),
            ("a node cut off, a spare one takes its place", runs.cluster.cut, third),
            ("a node killed, the others go on", runs.cluster.kill, fourth),
        )
    ]
    assert job.end() == "COMPLETED", job.told
    for node in (second, third, fourth):
        runs.cluster.repair(node)
    resumed = job.starts[1:]
    assert [(row["world_size"], row["slurm_restart_count"]) for row in resumed] == [(2, 0), (2, 0), (1, 0)]
    found, expected = curve(job.run), runs.undisturbed(*words[2:])
    before = resumed[-1]["step"]
    assert found[:before] == expected[:before]
    assert [row["step"] for row in found] == [row["step"] for row in expected]
    for row, other in zip(found, expected, strict=True):  # another order of sums, which Adam magnifies
        near = row["step"] <= before + 20
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-5 if near else 1e-3)
        assert not near or row["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)
    return costs


def at_its_time_limit(runs: Runs) -> list[Recovery]:
    """Slurm looks at time limits every half minute; the warning wakes the ranks, which have been stopped so long."""
    words = ("checkpoint.interval=1000", "training.step_timeout=0")
    job = runs.submit("limit", "--time=10", "--signal=USR1@60", overrides=words)
    job.reach(25)
    for node in job.nodes:
        for pid in job.pids(node):
            os.kill(pid, signal.SIGSTOP)
    runs.cluster.ask("scontrol", "update", f"jobid={job.id}", "EndTime=now+61")
    wait_for("the stop", lambda: job.events("preempt"), PATIENCE)

    def has_longer() -> bool:  # it would keep the short limit; not to be changed between its end and the queue
        runs.cluster.ask("scontrol", "update", f"jobid={job.id}", "TimeLimit=20", check=False)
        return "20:00" in runs.cluster.ask("squeue", "--noheader", "--format=%l", f"--jobs={job.id}")

    wait_for("a longer limit", has_longer, PATIENCE)
    _ended_undisturbed(job, runs)
    (stopped,), (resumed,) = job.events("preempt"), job.events("resume")
    assert stopped["signal"] == "SIGUSR1"
    assert (resumed["step"], resumed["slurm_restart_count"]) == (stopped["step"], 1)
    return []


def cancelled_and_submitted_again(runs: Runs) -> list[Recovery]:
    """It saves before it ends."""
    job = runs.submit("cancelled")
    job.reach(25)
    runs.cluster.ask("scancel", job.id)
    assert job.end() == "CANCELLED"
    (stopped,) = job.events("preempt")
    assert stopped["signal"] == "SIGTERM"
    again = runs.submit("cancelled")
    _ended_undisturbed(again, runs)
    assert [row["step"] for row in again.events("resume")] == [stopped["step"]]
    return []


def two_nodes_of_two_ranks_on_data_prepared_on_three(runs: Runs) -> list[Recovery]:
    """Data preparation on nodes without GPUs, and training in jobs that depend on it, in two layouts."""
    python, alone, prepared = _python_of_small_shards(runs), runs.folder / "alone", runs.folder / "prepared"
    inputs = [str(path) for path in sorted(Path(os.__file__).parent.glob("[a-p]*.py"))]
    words = [*inputs, "--tokenizer", str(runs.folder / "tokenizer.model"), "--validation-fraction", "0.1"]
    words += ["--workers", "1"]
    preparation = runs.prepare("prepared", "--nodes=3", words=words, python=python)
    layouts = [(f"parallel.{axis}=2", "training.steps=20") for axis in ("tensor", "pipeline")]
    data = f"data.train={prepared}/train"
    after = f"--dependency=afterok:{preparation.id}"
    jobs = [runs.submit(layout[0], after, overrides=(*layout, data), nproc=2) for layout in layouts]
    command = ["bash", str(SCRIPTS / "prepare.sh"), *words, "--output", str(alone)]
    subprocess.run(command, env={**os.environ, "BIGTRAIN_PYTHON": str(python)}, check=True, stdout=subprocess.DEVNULL)
    assert preparation.end() == "COMPLETED", preparation.told
    assert {line[0] for line in preparation.told.splitlines() if line[1:2] == ":"} == set("012"), preparation.told
    files = sorted(path.relative_to(alone) for path in alone.rglob("*") if path.is_file())
    assert len([path for path in files if path.suffix == ".arrow"]) > 3
    assert files == sorted(path.relative_to(prepared) for path in prepared.rglob("*") if path.is_file())
    assert [path for path in files if (alone / path).read_bytes() != (prepared / path).read_bytes()] == []
    for job, layout in zip(jobs, layouts, strict=True):
        assert job.end() == "COMPLETED", job.told
        assert curve(job.run) == runs.undisturbed(*layout, data, nproc=4)
        (start,) = job.events("start")
        assert (start["slurm_job_id"], start["slurm_restart_count"], start["world_size"]) == (job.id, 0, 4)
    return []


def fine_tuned_and_then_judged(runs: Runs) -> list[Recovery]:
    """Warned on its way. The job that waits for it judges on two processes what one would say here."""
    tuning = Runs(runs.cluster, runs.folder / "tuning", runs.folder / "tuning.yaml", sys.executable, "finetune.sh")
    tuning.folder.mkdir()
    examples = runs.folder / "examples.jsonl"
    texts = [("class" if i % 2 else "import", f"self value {i} return name") for i in range(48)]
    examples.write_text("".join(json.dumps({"text": f"{word} {text}", "label": word}) + "\n" for word, text in texts))
    tuning.config.write_text(_TUNING.format(folder=runs.folder))
    job = tuning.submit("tuned")
    judging = tuning.judge(job, examples, words=["parallel.tensor=2"], nproc=2)
    cost = _struck_at_random(job, strikes.warning, random.Random(f"tuning {SEED}"))
    _ended_undisturbed(job, tuning)
    assert judging.end() == "COMPLETED", judging.told
    here = runs.folder / "judged-here"
    command = ["bash", str(SCRIPTS / "evaluate.sh"), str(tuning.folder / "undisturbed-0"), str(examples)]
    env = {**os.environ, "BIGTRAIN_PYTHON": sys.executable}
    subprocess.run([*command, "--output", str(here)], env=env, check=True, stdout=subprocess.DEVNULL)
    there, expected = (rows(folder / "examples.predictions.jsonl") for folder in (job.run / "evaluation", here))
    assert len(there) == len(texts)
    for row, other in zip(there, expected, strict=True):
        near = pytest.approx(other.pop("scores"), abs=1e-4)
        assert row.pop("scores") == near
        assert row == other
    return [cost]


def an_unfit_node_is_left_out(runs: Runs) -> list[Recovery]:
    """The checkup before the first step finds one with another BigTrain, and another takes its place.

    The nodes have another Python than the batch step, as in a container.
    """
    python = runs.folder / "python3"
    python.write_text(f'#!/bin/sh\ntouch {runs.folder}/python-of-$SLURMD_NODENAME\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    variables = {"BIGTRAIN_PREFIX": _other_bigtrain(runs, nodes=3), "BIGTRAIN_NODE_PYTHON": str(python)}
    words = ("launch.checkup_timeout=90", "launch.spare_nodes=1", "training.steps=20")
    job = runs.submit("unfit", "--nodes=3", overrides=words, variables=variables)
    wait_for("a step", lambda: job.step > 0 or job.state not in ("PENDING", "RUNNING"), PATIENCE)
    nodes = job.nodes
    assert job.end() == "COMPLETED", job.told
    assert f"--exclude={nodes[1]}" in job.told
    (start,) = job.events("start")
    assert start["world_size"] == 2
    assert {path.name for path in runs.folder.glob("python-of-*")} == {f"python-of-{node}" for node in nodes}
    assert curve(job.run) == runs.undisturbed("training.steps=20")
    return []


def mistakes_that_only_the_nodes_can_tell(runs: Runs) -> list[Recovery]:
    """Found before the first step: no folder that all nodes share, another BigTrain on one of two. One message each."""
    apart = runs.folder / "apart"
    enter = f'mkdir -p {apart}/$SLURMD_NODENAME/run && cd {apart}/$SLURMD_NODENAME && exec "$@"'
    said = "training.output_dir is another folder here than where the job's first process runs: not shared"
    for name, prefix, told, folder in (
        ("not-shared", shlex.join(["sh", "-c", enter, "sh"]), said, "/proc/self/cwd/run"),
        ("another", _other_bigtrain(runs, nodes=2), "Python environment: bigtrain", None),
    ):
        words = ("launch.checkup_timeout=90", *([f"training.output_dir={folder}"] if folder else []))
        job = runs.submit(name, f"--chdir={runs.folder}", overrides=words, variables={"BIGTRAIN_PREFIX": prefix})
        assert job.end() == "FAILED", job.told
        assert job.exit_code == 2, job.told
        assert job.told.count("\nerror: ") == job.told.count(told) == 1, job.told
        assert ": starting;" not in job.told
    return []


def given_up_when_it_fails_again_and_again(runs: Runs) -> list[Recovery]:
    """At the same step; and when it is told to end as soon as it starts, again and again."""
    job = runs.submit("loop", variables={"BIGTRAIN_PREFIX": "sh -c 'exit 7' --"})
    assert job.end() == "FAILED"
    assert [(row["step"], row["exit_code"]) for row in job.events("fault")] == [(0, 7)] * 3
    assert "the last 3 starts have all failed after step 0" in job.told

    # Slurm's own warning may come before there is a step that hears it.
    up = f"{runs.folder}/up-${{SLURM_RESTART_COUNT:-0}}-$SLURM_NODEID"
    until_told = shlex.join(["sh", "-c", f"trap 'exit 75' USR1; touch {up}; sleep 600 & wait", "sh"])
    job = runs.submit("told-at-once", "--time=10", variables={"BIGTRAIN_PREFIX": until_told})
    for start in range(3):
        wait_for("both nodes", lambda start=start: len(list(runs.folder.glob(f"up-{start}-*"))) == 2, PATIENCE)  # type: ignore[misc]
        runs.cluster.ask("scancel", "--signal=USR1", job.id)
    assert job.end() == "FAILED"
    assert job.exit_code == 2
    assert job.told.count("== put back into the queue") == 2
    assert "seconds of its time limit of 600 when it was told to end" in job.told
    return []


LIVES: dict[str, Callable[[Runs], list[Recovery]]] = {
    life.__name__: life
    for life in (  # those that take longest first
        nodes_killed_at_random_steps,
        struck_by_all_but_a_lost_node,
        spare_nodes_take_over_and_then_fewer_will_do,
        at_its_time_limit,
        two_nodes_of_two_ranks_on_data_prepared_on_three,
        a_node_cut_off,
        fine_tuned_and_then_judged,
        cancelled_and_submitted_again,
        an_unfit_node_is_left_out,
        mistakes_that_only_the_nodes_can_tell,
        given_up_when_it_fails_again_and_again,
    )
}


def _struck_at_random(job: Job, stroke: Stroke, chance: random.Random, *, name: str = "") -> Recovery:
    """Between five and twenty steps from here; gives the cost."""
    job.reach(job.step + chance.randint(5, 20))
    return strike(job, name or stroke.__name__, stroke)


def _ended_undisturbed(job: Job, runs: Runs) -> None:
    assert job.end() == "COMPLETED", job.told
    assert curve(job.run) == runs.undisturbed()


def _other_bigtrain(runs: Runs, nodes: int) -> str:
    """Words before a node's Python, which has other sources on the second one of a step of so many."""
    other = runs.folder / f"other-{nodes}"
    package = Path(bigtrain.__file__).parent
    shutil.copytree(package, other / "bigtrain", ignore=shutil.ignore_patterns("__pycache__"))
    (other / "bigtrain/errors.py").open("a").write("# changed\n")
    chosen = f"$SLURM_NODEID/$SLURM_STEP_NUM_NODES = 1/{nodes}"
    return shlex.join(["sh", "-c", f'[ {chosen} ] && cd {other} && export PYTHONPATH={other}; exec "$@"', "sh"])


def _python_of_small_shards(runs: Runs) -> Path:
    """So that a few megabytes of text are work for several nodes; the command line has no option for it."""
    python = runs.folder / "python-small"
    small = "import bigtrain.data.writing as w; w.TOKENS_PER_SHARD = 100_000; from bigtrain.cli import main; main()"
    python.write_text(f'#!/bin/sh\nshift 2  # -m bigtrain\nexec {sys.executable} -c "{small}" "$@"\n')
    python.chmod(0o755)
    return python
