"""Jobs on a real Slurm: what befalls them does not change what they compute."""

import shlex
import shutil
import sys
from pathlib import Path

import pytest
import strikes
from strikes import Runs, curve, strike

import bigtrain

pytestmark = pytest.mark.slurm


@pytest.mark.parametrize("axis", ["tensor", "pipeline"])
def test_two_nodes_compute_what_one_does(runs: Runs, axis: str) -> None:
    words = (f"parallel.{axis}=2", "training.steps=20")
    job = runs.submit(axis, overrides=words, nproc=2)
    assert job.end() == "COMPLETED", job.out.read_text()
    assert curve(job.run) == runs.undisturbed(*words, nproc=4)
    (start,) = job.events("start")
    assert (start["slurm_job_id"], start["slurm_restart_count"]) == (job.id, 0)


@pytest.mark.parametrize("name", ["warning", "requeue", "preempt", "kill_rank", "stop_rank"])
def test_a_run_that_is_struck_ends_with_the_same_curve(runs: Runs, name: str) -> None:
    partition = "low" if name == "preempt" else "main"
    job = runs.submit(name, f"--partition={partition}")
    job.reach(25)
    cost = strike(job, name, getattr(strikes, name))
    print(cost)
    assert job.end() == "COMPLETED", job.out.read_text()
    assert curve(job.run) == runs.undisturbed()
    assert cost.lost_steps <= 20


@pytest.mark.parametrize("name", ["kill_node", "kill_first_node", "cut_node"])
def test_a_run_whose_node_is_lost_goes_on_by_the_queue(runs: Runs, name: str) -> None:
    job = runs.submit(name)
    job.reach(25)
    nodes = job.nodes
    cost = strike(job, name, getattr(strikes, name))
    print(cost)
    bring_back(runs, nodes)
    assert job.end() == "COMPLETED", job.out.read_text()
    assert curve(job.run) == runs.undisturbed()
    assert max(row.get("slurm_restart_count", 0) for row in job.events("resume")) >= 1


@pytest.mark.parametrize("name", ["kill_node", "cut_node"])
def test_a_spare_node_takes_the_place_of_one_that_is_lost(runs: Runs, name: str) -> None:
    job = runs.submit(f"{name}-spare", "--nodes=3", "--no-kill", overrides=("launch.spare_nodes=1",))
    job.reach(25)
    nodes = job.nodes
    cost = strike(job, f"{name}-spare", getattr(strikes, name))
    print(cost)
    bring_back(runs, nodes)
    assert job.end() == "COMPLETED", job.out.read_text()
    assert curve(job.run) == runs.undisturbed()
    assert [row["slurm_restart_count"] for row in job.events("resume")] == [0]


def test_with_fewer_nodes_it_goes_on_smaller(runs: Runs) -> None:
    """No dropout: which units it takes depends on the layout."""
    words = ("launch.elastic=true", "model.hidden_dropout=0.0")
    job = runs.submit("elastic", "--no-kill", overrides=words)
    job.reach(25)
    nodes = job.nodes
    print(strike(job, "elastic", strikes.kill_node))
    bring_back(runs, nodes)
    assert job.end() == "COMPLETED", job.out.read_text()
    assert [row["world_size"] for row in job.events("resume")] == [1]
    expected = runs.undisturbed(*words)
    assert [row["step"] for row in curve(job.run)] == [row["step"] for row in expected]
    for row, other in zip(curve(job.run), expected, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert row["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)


def test_before_its_time_limit_it_saves_and_goes_back_to_the_queue(runs: Runs) -> None:
    """Slurm looks at time limits every half minute."""
    words = ("training.steps=1500", "checkpoint.interval=1000", "logging.interval=100")
    job = runs.submit("limit", "--time=10", "--signal=USR1@60", overrides=words)
    job.reach(100)
    runs.cluster.ask("scontrol", "update", f"jobid={job.id}", "EndTime=now+61")
    assert job.end() == "COMPLETED", job.out.read_text()
    assert [row["signal"] for row in job.events("preempt")] == ["SIGUSR1"]
    (stopped,), (resumed,) = job.events("preempt"), job.events("resume")
    assert stopped["step"] == resumed["step"]
    assert resumed["slurm_restart_count"] == 1
    assert curve(job.run)[-1] == runs.undisturbed(*words)[-1]


def test_a_cancelled_run_saves_and_goes_on_when_it_is_submitted_again(runs: Runs) -> None:
    job = runs.submit("cancelled")
    job.reach(25)
    runs.cluster.ask("scancel", job.id)
    assert job.end() == "CANCELLED"
    (stopped,) = job.events("preempt")
    assert stopped["signal"] == "SIGTERM"
    again = runs.submit("cancelled")
    assert again.end() == "COMPLETED", again.out.read_text()
    assert [row["step"] for row in again.events("resume")] == [stopped["step"]]
    assert curve(again.run) == runs.undisturbed()


def test_a_node_that_is_not_fit_is_left_out_from_the_start(runs: Runs) -> None:
    """One that has another BigTrain."""
    other = runs.folder / "other"
    shutil.copytree(Path(bigtrain.__file__).parent, other / "bigtrain", ignore=shutil.ignore_patterns("__pycache__"))
    (other / "bigtrain/errors.py").open("a").write("# changed\n")
    odd = f'[ $SLURMD_NODENAME = n2 ] && cd {other} && export PYTHONPATH={other}; exec "$@"'
    words = ("launch.checkup_timeout=60", "launch.spare_nodes=1", "training.steps=20")
    variables = {"BIGTRAIN_PREFIX": shlex.join(["sh", "-c", odd, "sh"])}
    job = runs.submit("unfit", "--nodelist=n[1-3]", "--nodes=3", overrides=words, variables=variables)
    assert job.end() == "COMPLETED", job.out.read_text()
    assert "--exclude=n2" in job.out.read_text()
    (start,) = job.events("start")
    assert start["world_size"] == 2
    assert curve(job.run) == runs.undisturbed(*words)


def test_the_nodes_may_have_another_python(runs: Runs) -> None:
    """As in a container: the batch step's is not theirs."""
    python = runs.folder / "python3"
    python.write_text(f'#!/bin/sh\ntouch {runs.folder}/python-of-$SLURMD_NODENAME\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    words = ("launch.checkup_timeout=60", "training.steps=2")
    job = runs.submit("python", "--nodelist=n[1-2]", overrides=words, variables={"BIGTRAIN_NODE_PYTHON": str(python)})
    assert job.end() == "COMPLETED", job.out.read_text()
    assert sorted(path.name for path in runs.folder.glob("python-of-*")) == ["python-of-n1", "python-of-n2"]


def test_one_that_fails_at_the_same_step_again_and_again_is_given_up(runs: Runs) -> None:
    job = runs.submit("loop", variables={"BIGTRAIN_PREFIX": "sh -c 'exit 7' --"})
    assert job.end() == "FAILED"
    assert [(row["step"], row["exit_code"]) for row in job.events("fault")] == [(0, 7)] * 3
    assert "the last 3 starts have all failed after step 0" in job.out.read_text()


def bring_back(runs: Runs, nodes: list[str]) -> None:
    for node in nodes:
        runs.cluster.repair(node)
