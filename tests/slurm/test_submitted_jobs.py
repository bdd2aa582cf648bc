"""A run on a real Slurm through `bigtrain` alone: submitted, watched, stopped, continued; swept; followed by others."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from slurm_cluster import PATIENCE, Cluster, wait_for
from strikes import rows

from bigtrain.config import Config, to_yaml

pytestmark = pytest.mark.slurm

Bigtrain = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def bigtrain(cluster: Cluster, tmp_path: Path) -> Bigtrain:
    """Runs a command of the package's in a folder of its own."""

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        return cluster.run(sys.executable, "-m", "bigtrain", *map(str, words), cwd=tmp_path)

    return run


@pytest.fixture
def config(tiny: Callable[..., Config], dataset: Path, tmp_path: Path) -> Path:
    """Two processes on one node; for a minute or so, unless `training.steps` says otherwise."""
    path = tmp_path / "run.yaml"
    words = (f"data.train={dataset / 'train'}", "training.steps=100000", "checkpoint.interval=0", "optimizer.lr=0.01")
    path.write_text(to_yaml(tiny(*words, "launch.processes_per_node=2", "launch.time=00:30:00")))
    return path


def done(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def refused(result: subprocess.CompletedProcess[str]) -> str:
    assert (result.returncode, result.stdout) == (2, ""), result.stdout + result.stderr
    return result.stderr


def events(run: Path) -> list[str]:
    return [row["event"] for row in rows(run / "events.jsonl")]


def states(cluster: Cluster, job_id: str) -> list[str]:
    return cluster.ask("squeue", "--noheader", "--array", "--states=all", "--format=%T", f"--jobs={job_id}").split()


def test_submit_watch_stop_and_go_on(bigtrain: Bigtrain, config: Path, cluster: Cluster, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job_id = done(bigtrain("submit", config, "launch.nodes=2", "launch.processes_per_node=1")).strip()
    assert job_id.isdigit(), "nothing else is printed"
    config.write_text(config.read_text().replace("lr: 0.01", "lr: 7.0"))  # what is queued stays as it was
    wait_for("a step", lambda: rows(run / "metrics.jsonl"), PATIENCE)
    told = done(bigtrain("status", run))
    assert re.search(rf"job {job_id} RUNNING on n\[1-2\]  .* used, .* left  step \d+/100000  loss \d", told)
    assert "start at step 0" in told
    assert f"has job {job_id} already, which is RUNNING" in refused(bigtrain("submit", config))

    assert f"job {job_id} is told to write a checkpoint" in bigtrain("stop", run).stderr
    assert states(cluster, job_id) == ["FAILED"]  # for Slurm: its exit code is not 0
    assert not (run / "stop").exists()
    assert events(run)[-2:] == ["checkpoint", "preempt"]
    assert f"job {job_id} stopped" in done(bigtrain("status", run))
    assert bigtrain("status", run, "--watch").returncode == 75
    assert "has ended already" in bigtrain("stop", run).stderr

    step = rows(run / "metrics.jsonl")[-1]["step"]
    words = ("optimizer.lr=0.01", f"training.steps={step + 5}")
    watched = bigtrain("submit", config, *words, "--watch")
    second = done(watched).strip()
    assert f"job {second} COMPLETED  step {step + 5}/{step + 5}" in watched.stderr
    assert "resume" in events(run)
    assert {row["learning_rate"] < 0.02 for row in rows(run / "metrics.jsonl")} == {True}
    assert f"resumed at step {step}" in done(bigtrain("logs", run, "--follow"))
    assert "layout" in done(bigtrain("logs", run, "--rank", 1))
    assert "there are 2 logs" in refused(bigtrain("logs", run, "--rank", 7))


def test_a_run_is_stopped_while_it_starts(bigtrain: Bigtrain, config: Path, cluster: Cluster, tmp_path: Path) -> None:
    """Signals are lost on processes that do not handle them yet, or end them."""
    job_id = done(bigtrain("submit", config)).strip()
    wait_for("the start", lambda: states(cluster, job_id) == ["RUNNING"], PATIENCE)
    bigtrain("stop", tmp_path / "run")
    assert states(cluster, job_id) == ["FAILED"]
    assert f"job {job_id} stopped" in done(bigtrain("status", tmp_path / "run"))
    assert not (tmp_path / "run/stop").exists()


def test_a_sweep_is_an_array(bigtrain: Bigtrain, config: Path, cluster: Cluster, tmp_path: Path) -> None:
    """One of them is put back into the queue on its way, and does not take the other along."""
    sweep = ("training.steps=20000", "launch.processes_per_node=1", "--sweep", "optimizer.lr=1e-3,3e-3")
    job_id = done(bigtrain("submit", config, *sweep)).strip()
    folders = [tmp_path / "run" / name for name in ("optimizer.lr=0.001", "optimizer.lr=0.003")]
    for folder in folders:
        wait_for("a step", lambda folder=folder: rows(folder / "metrics.jsonl"), PATIENCE)  # type: ignore[misc]
    told = done(bigtrain("status", tmp_path / "run")).splitlines()
    for number, (folder, line) in enumerate(zip(folders, told[1:], strict=True)):
        assert line.split()[:3] == [folder.name, f"{job_id}_{number}", "RUNNING"]

    last = f"{job_id}_1"  # which Slurm also knows by the number of the whole array
    cluster.ask("scancel", "--signal=USR1", last)
    wait_for("the requeue", lambda: "preempt" in events(folders[1]), PATIENCE)
    wait_for("its next start", lambda: "resume" in events(folders[1]), PATIENCE)
    assert events(folders[0]) == ["start"]
    assert rows(folders[1] / "events.jsonl")[-1]["slurm_job_id"] == last

    bigtrain("stop", tmp_path / "run")
    assert [events(folder)[-1] for folder in folders] == ["preempt", "preempt"]
    assert states(cluster, job_id) == ["FAILED", "FAILED"]
    rates = [{row["learning_rate"] for row in rows(folder / "metrics.jsonl")} for folder in folders]
    assert max(rates[0]) <= 1e-3 < max(rates[1])
    assert "is a sweep of 2 runs" in refused(bigtrain("logs", tmp_path / "run"))
    assert "starting" in done(bigtrain("logs", folders[0]))


def test_pretrain_convert_evaluate(
    bigtrain: Bigtrain, config: Path, dataset: Path, cluster: Cluster, tmp_path: Path
) -> None:
    """What is exported predicts held-out text as well as the run says of itself."""
    run, held_out = tmp_path / "run", dataset / "validation"
    then = ("--then", "convert to-hf {run} {run}/hf", "--then", f"evaluate {{run}}/hf {held_out} --sequence-length 16")
    watched = bigtrain("submit", config, "training.steps=5", f"data.validation={held_out}", *then, "--watch")
    assert done(watched).strip().isdigit()
    followers = re.findall(r"then job (\d+):", watched.stderr)
    wait_for("the scores", lambda: states(cluster, followers[1]) == ["COMPLETED"], PATIENCE)
    assert f"then job {followers[0]} COMPLETED  bigtrain convert to-hf {run} {run}/hf" in done(bigtrain("status", run))
    scores = json.loads((run / "hf/evaluation/validation.scores.json").read_text())["scores"]
    *_, last = rows(run / "metrics.jsonl")
    assert scores["loss"]["value"] == pytest.approx(last["validation_loss"], rel=1e-5)


def test_what_follows_a_run_that_fails_is_not_started(bigtrain: Bigtrain, config: Path, cluster: Cluster) -> None:
    """Only the compute nodes can tell that the data is not there."""
    words = ("data.train=/nowhere", "--no-check-files", "--then", "report {run}", "--watch")
    watched = bigtrain("submit", config, *words)
    assert watched.returncode == 2
    assert "FAILED (exit code 2)" in watched.stderr
    (follower,) = re.findall(r"then job (\d+):", watched.stderr)
    wait_for("its end", lambda: states(cluster, follower) == ["CANCELLED"], PATIENCE)


def test_a_job_that_waits(bigtrain: Bigtrain, config: Path, cluster: Cluster, tmp_path: Path) -> None:
    run = tmp_path / "run"
    later = "launch.sbatch={begin: now+1hour}"
    first = done(bigtrain("submit", config, later)).strip()
    assert re.search(rf"job {first} PENDING \(BeginTime, expected .*\)  step 0/100000", done(bigtrain("status", run)))
    assert f"job {first} is PENDING" in refused(bigtrain("logs", run))
    other = ("submit", config, f"training.output_dir={tmp_path / 'other'}")
    second = done(bigtrain(*other, "--after", run)).strip()
    third = done(bigtrain(*other[:2], "training.output_dir=third", "--after", first, "--after", second)).strip()
    asked = cluster.ask("squeue", "--noheader", "--Format=Dependency:100", f"--jobs={second},{third}")
    assert sorted(re.findall(r"afterok:(\d+)", asked)) == sorted([first, first, second])

    assert f"job {first} is taken out of the queue" in bigtrain("stop", run).stderr
    assert states(cluster, first) == ["CANCELLED"]
    for job_id in (second, third):
        wait_for("its end", lambda job_id=job_id: states(cluster, job_id) == ["CANCELLED"], PATIENCE)  # type: ignore[misc]
    assert "has ended (CANCELLED) before the run was done" in refused(bigtrain(*other, "--after", run))


def test_a_chain_of_jobs(bigtrain: Bigtrain, config: Path, cluster: Cluster, tmp_path: Path) -> None:
    """Where Slurm must not requeue, another job follows the first at its time limit, and is the run's from then on."""
    run = tmp_path / "run"
    first = done(bigtrain("submit", config, "launch.chain=true", "launch.processes_per_node=1")).strip()
    wait_for("a step", lambda: rows(run / "metrics.jsonl"), PATIENCE)
    with ThreadPoolExecutor(1) as pool:
        watched = pool.submit(bigtrain, "status", run, "--watch")
        cluster.ask("scancel", "--signal=USR1", first)
        wait_for("the second start", lambda: "resume" in events(run), PATIENCE)
        second = json.loads((run / "slurm/jobs.jsonl").read_text().splitlines()[-1])["id"]
        assert second != first
        assert f"job {second} RUNNING" in done(bigtrain("status", run))
        resumed = rows(run / "events.jsonl")[-1]
        assert (resumed["slurm_job_id"], resumed["slurm_restart_count"]) == (second, 0)
        bigtrain("stop", run)
    assert watched.result().returncode == 75
    assert f"job {second} " in watched.result().stdout
    assert states(cluster, second) == ["FAILED"]
    assert len((run / "slurm/jobs.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["launch.partition=mian"], "no partition 'mian' here, there are main, high, low; did you mean main?"),
        (["launch.gpus_per_node=3"], "launch.gpus_per_node is 3, but no node of partition main has more than 2"),
        (["launch.nodes=5"], "launch.nodes is 5, but partition main has 4 such nodes"),
        (
            ["launch.constraint=nix"],
            "Slurm refuses the job: Batch job submission failed: Invalid feature",
        ),
        (["--after", "99"], "--after 99: Slurm knows no such job"),
        (["--after", "nowhere"], "nowhere is no folder"),
        (["parallel.tensor=2", "launch.processes_per_node=3"], "does not make world size 3"),
        (["data.train=/nowhere"], "submit with --no-check-files"),
    ],
)
def test_refused_at_submission(bigtrain: Bigtrain, config: Path, words: list[str], said: str) -> None:
    """In one message, with nothing in the queue."""
    nodes = ["training.global_batch_size=20", "training.micro_batch_size=1"]
    told = refused(bigtrain("submit", config, *nodes, *words))
    assert said in told
    assert told.count("error: ") == 1
