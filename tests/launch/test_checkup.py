"""A checkup of nodes that are processes of this machine: real programs, files and connections, no Slurm (`step.py`)."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import bigtrain
from bigtrain.config import Config, to_yaml
from bigtrain.errors import ConfigError, LaunchError
from bigtrain.launch.checkup import checkup
from bigtrain.launch.checkup_verdicts import Report

Job = Callable[..., Config]
HERE = "/proc/self/cwd"  # another folder for a process that was started in another one


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: Path, tiny: Callable[..., Config]) -> Job:
    """Stand in the batch step of a job; gives its configuration, once told in what nodes differ."""
    programs, here = tmp_path / "bin", tmp_path / "here"
    programs.mkdir()
    here.mkdir()
    (here / "data").symlink_to(dataset)
    (programs / "srun").write_text(f'#!/bin/sh\nexec "{sys.executable}" "{Path(__file__).parent / "step.py"}" "$@"\n')
    (programs / "srun").chmod(0o755)
    monkeypatch.chdir(here)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", str(os.getpid()))
    for name in ("MASTER_PORT", "SLURM_STEP_ID", "RANK"):
        monkeypatch.delenv(name, raising=False)

    def configure(*overrides: str, **nodes: dict[str, object]) -> Config:
        monkeypatch.setenv("ON_NODES", json.dumps(nodes))
        return tiny(f"data.train={HERE}/data/train", f"training.output_dir={HERE}/run", *overrides)

    return configure


def found(report: Report, node: str, what: str) -> tuple[str, str]:
    """Kind and words."""
    (verdict,) = [one for one in report.verdicts if (one.node, one.what) == (node, what)]
    return verdict.kind, verdict.found


@pytest.mark.distributed
def test_the_doctor_finds_healthy_nodes_fit(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("run.yaml").write_text(to_yaml(job("training.global_batch_size=6")))
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[1-3]")
    monkeypatch.setenv("COLUMNS", "200")
    command = [sys.executable, "-m", "bigtrain", "doctor", "run.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    *rows, last = done.stdout.splitlines()
    assert last == "all fit"
    assert len(rows) > 7
    assert all(row.startswith(" all 3 nodes ") and row.rstrip().endswith(" ok") for row in rows[1:]), done.stdout
    (network,) = [row for row in rows if " network " in row]
    assert "between pairs by TCP" in network
    assert "in an all-reduce" in network
    assert sorted(path.name for path in Path().iterdir()) == ["data", "run.yaml"]


@pytest.mark.distributed
def test_odd_nodes_are_named(job: Job, tmp_path: Path) -> None:
    """Of five: one is in another folder, one has other sources, one has no network."""
    other, copy = tmp_path / "other", tmp_path / "copy"
    (other / "run").mkdir(parents=True)
    shutil.copytree(Path(bigtrain.__file__).parent, copy / "bigtrain", ignore=shutil.ignore_patterns("__pycache__"))
    with (copy / "bigtrain/errors.py").open("a") as sources:
        sources.write("# edited\n")
    config = job(
        n3={"cwd": str(other)}, n4={"env": {"PYTHONPATH": str(copy)}}, n5={"env": {"GLOO_SOCKET_IFNAME": "none0"}}
    )
    report = checkup(config, ["n1", "n2", "n3", "n4", "n5"], seconds=120)
    assert report.bad_nodes == ["n3", "n4", "n5"], report.text()
    kind, words = found(report, "n3", "run's folder")
    assert (kind, "not shared" in words) == ("bad", True)
    assert found(report, "n3", "data")[1].startswith(f"data.train: {HERE}/data/train: no dataset there")
    kind, words = found(report, "n4", "Python environment")
    assert kind == "bad"
    assert words.startswith(f"bigtrain {bigtrain.__version__} (sources ")
    assert ", elsewhere " in words
    kind, words = found(report, "n5", "network")
    assert kind == "bad"
    assert words.startswith("cannot talk to ")
    assert {found(report, node, "network")[0] for node in ("n1", "n2", "n3", "n4")} <= {"ok", "note"}
    assert "sbatch --exclude=n3,n4,n5" in report.text()
    assert list(other.glob("run/*")) == []


@pytest.mark.distributed
def test_a_folder_that_is_not_shared_is_no_fault_of_a_node(job: Job, tmp_path: Path, dataset: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "data").symlink_to(dataset)
    (other / "run").mkdir()
    report = checkup(job(n2={"cwd": str(other)}), ["n1", "n2"], seconds=120)
    assert not report.ok
    assert report.bad_nodes == []
    assert "n2: run's folder: training.output_dir is another folder here" in report.text()
    assert "--exclude" not in report.text()


@pytest.mark.slow
def test_nodes_that_do_not_answer_are_named_in_time(job: Job, tmp_path: Path) -> None:
    """One hangs, one is silent, one has a broken package; the others are looked at all the same."""
    hangs, broken = tmp_path / "hangs", tmp_path / "broken"
    (hangs / "data/train").mkdir(parents=True)
    os.mkfifo(hangs / "data/train/dataset.json")  # a file that is never read to its end
    (broken / "bigtrain").mkdir(parents=True)
    (broken / "bigtrain/__init__.py").write_text("raise ImportError('this copy is broken')\n")
    config = job(n3={"cwd": str(hangs)}, n4={"silent": True}, n5={"env": {"PYTHONPATH": str(broken)}})
    report = checkup(config, ["n1", "n2", "n3", "n4", "n5"], seconds=30)
    assert report.seconds < 60
    assert report.bad_nodes == ["n3", "n4", "n5"], report.text()
    assert found(report, "n3", "answer") == ("bad", "time was over while opening the datasets")
    assert found(report, "n4", "answer")[1].startswith("none within 30 s")
    assert "this copy is broken" in found(report, "n5", "answer")[1]
    assert [found(report, node, "network")[0] for node in ("n1", "n2")] == ["ok", "ok"]


def test_a_disk_too_small_is_told_of_one_node(job: Job) -> None:
    huge = ("model.hidden_size=65536", "model.intermediate_size=262144", "model.num_hidden_layers=1024")
    report = checkup(job(*huge), ["n1"], seconds=120)
    assert found(report, "n1", "disk space")[0] == "bad"
    assert not report.ok
    assert report.bad_nodes == []
    assert report.text().splitlines()[0].startswith("1 node checked in ")


def test_without_a_job_there_is_nothing_to_look_at(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("run.yaml").write_text(to_yaml(job()))
    monkeypatch.delenv("SLURM_JOB_ID")
    command = [sys.executable, "-m", "bigtrain", "doctor", "run.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: this is no Slurm job's shell")


def test_what_the_first_node_cannot_do_is_told_at_once(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("run").touch()
    with pytest.raises(ConfigError, match=r"training\.output_dir .*run cannot be written: File exists"):
        checkup(job(), ["n1"])
    Path("run").unlink()
    monkeypatch.setenv("PATH", "")
    with pytest.raises(LaunchError, match="`srun` is not in PATH"):
        checkup(job(), ["n1"])


@pytest.mark.parametrize(
    ("errors", "bad"),
    [
        (
            "error: Task launch for StepId=7.0 failed on node n2: Connection refused\nsrun: error: n1: task 0: Killed",
            ["n2"],
        ),
        ("error: Unable to create step for job 7: Invalid generic resource (gres) specification", []),
    ],
)
def test_where_slurm_starts_nothing(job: Job, tmp_path: Path, errors: str, bad: list[str]) -> None:
    """A node that it cannot reach is named; what it has against all is told, and no node is blamed."""
    (tmp_path / "errors").write_text(f"srun: {errors}\n")
    (tmp_path / "bin/srun").write_text(f"#!/bin/sh\ncat {tmp_path}/errors >&2\nexit 1\n")
    report = checkup(job(), ["n1", "n2"], seconds=10)
    assert not report.ok
    assert report.bad_nodes == bad
    assert errors.splitlines()[0] in report.text()


def test_little_is_imported() -> None:
    """The job's batch step needs no torch for it, and its nodes nothing beside."""
    heavy = {"megatron", "deepspeed", "transformers", "wandb"}
    for module, others in (("checkup", heavy | {"torch", "numpy"}), ("checkup_pairs", heavy)):
        code = f"import sys, bigtrain.launch.{module}; sys.exit(str(set(sys.modules) & {others}))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.stderr.strip() == "set()"
