"""Jobs on a real Slurm: what befalls them does not change what they compute."""

import pytest
import strikes
from strikes import Runs, curve, strike

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
