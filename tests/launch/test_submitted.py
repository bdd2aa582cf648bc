"""Which jobs a run has had, how it stands, and what is read of both without Slurm."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bigtrain.errors import LaunchError
from bigtrain.launch import slurm
from bigtrain.launch.output import output_file
from bigtrain.launch.status import Progress, Status, clock, line, progress, worst
from bigtrain.launch.submitted import Submitted, followers_of, newest_job, record, runs_of
from bigtrain.training import records


def job(state: str = "RUNNING", *, exit_code: int = 0, reason: str = "None", starts: str = "N/A") -> slurm.Job:
    return slurm.Job("17", state, reason, "n[1-2]", "0:30", "1:30", starts, "main", exit_code, "run")


def event(run: Path, name: str, time: float, job_id: str | None = None) -> None:
    row = {"event": name, "time": time, "step": 3, "world_size": 1}
    records.append(run / records.EVENTS, row if job_id is None else {**row, "slurm_job_id": job_id})


def test_the_newest_job_is_the_last_that_was_submitted_or_has_started(tmp_path: Path) -> None:
    record(tmp_path, Submitted("17", 100.0, output="a"))
    event(tmp_path, "start", 110.0, "17")
    assert newest_job(tmp_path) == Submitted("17", 100.0, output="a")
    event(tmp_path, "resume", 200.0, "18")  # by hand, or one that followed at the time limit
    assert newest_job(tmp_path) == Submitted("18", 200.0)
    record(tmp_path, Submitted("19", 300.0))
    assert newest_job(tmp_path).id == "19"


def test_what_follows_a_run_is_not_its_job(tmp_path: Path) -> None:
    record(tmp_path, Submitted("17", 100.0))
    record(tmp_path, Submitted("18", 100.0, command="report run"))
    assert newest_job(tmp_path).id == "17"
    assert [job.id for job in followers_of(tmp_path)] == ["18"]
    record(tmp_path, Submitted("20", 200.0))
    assert followers_of(tmp_path) == []


def test_a_folder_without_a_job(tmp_path: Path) -> None:
    event(tmp_path, "start", 1.0)
    with pytest.raises(LaunchError, match="has had no Slurm job"):
        newest_job(tmp_path)
    with pytest.raises(LaunchError, match="is no folder"):
        newest_job(tmp_path / "nothing")


def test_the_runs_of_a_sweep(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a", "b")]
    record(tmp_path, Submitted("17", 100.0, tasks=tuple(map(str, folders))))
    for number, folder in enumerate(folders):
        record(folder, Submitted(f"17_{number}", 100.0))
    record(folders[1], Submitted("18", 200.0))  # one of them submitted again by itself
    assert {folder.name: job.id for folder, job in runs_of(tmp_path).items()} == {"a": "17_0", "b": "18"}
    with pytest.raises(LaunchError, match="is a sweep of 2 runs; name one of them"):
        output_file(tmp_path, None)
    assert output_file(folders[0], 3) == folders[0] / "logs/rank-00003.log"


def test_progress_of_a_long_run_that_is_being_written(tmp_path: Path) -> None:
    """Only the end is read, which need not begin nor end with a whole line; validation rows are no steps."""
    with (tmp_path / records.METRICS).open("w") as file:
        for step in range(1, 3001):
            row = {"step": step, "loss": 1 / step, "step_seconds": 2.0, "tokens_per_second": 1000.0}
            file.write(json.dumps(row) + "\n")
        file.write(json.dumps({"step": 3000, "validation_loss": 5.0}) + "\n" + '{"step": 30')
    assert progress(tmp_path, Submitted("17", 0.0)) == Progress(3000, None, 1 / 3000, 1000.0, None)


def test_a_run_that_has_not_started(tmp_path: Path) -> None:
    assert progress(tmp_path, Submitted("17", 0.0)) == Progress()


@pytest.mark.parametrize(
    ("told", "last", "state", "code"),
    [
        (job("COMPLETED"), "stop", "COMPLETED", 0),
        (job("FAILED", exit_code=75), "preempt", "stopped", 75),
        (job("FAILED", exit_code=2), "start", "FAILED (exit code 2)", 2),
        (job("NODE_FAIL"), "start", "NODE_FAIL", 1),
        (job("CANCELLED"), "preempt", "CANCELLED", 75),
        (None, "stop", "done", 0),
        (None, "preempt", "stopped", 75),
        (None, "start", "ended", 1),
    ],
)
def test_how_a_job_has_ended(told: slurm.Job | None, last: str, state: str, code: int) -> None:
    status = Status(Path("run"), Submitted("17", 0.0), told, Progress(), [{"event": last}])
    assert (status.ended, status.state, status.exit_code) == (True, state, code)


def test_lines() -> None:
    now = Progress(12, 100, 3.25, 1234.5, 3661)
    running = Status(Path("run"), Submitted("17", 0.0), job(), now, [])
    assert line(running) == (
        "job 17 RUNNING on n[1-2]  0:30 used, 1:30 left  step 12/100  loss 3.2500  1,234 tokens/s  1:01:01 to the end"
    )
    waits = job("PENDING", reason="Resources", starts="2026-01-02T03:04:05")
    waiting = Status(Path("run"), Submitted("17", 0.0), waits, Progress(steps=100), [])
    assert line(waiting) == "job 17 PENDING (Resources, expected 2026-01-02T03:04:05)  step 0/100"
    assert not waiting.ended


def test_a_fault_stands_for_a_sweep_before_a_stop(tmp_path: Path) -> None:
    def ended(code: int) -> Status:
        told = job("FAILED" if code else "COMPLETED", exit_code=code)
        return Status(tmp_path, Submitted("17", 0.0), told, Progress(), [])

    assert worst([ended(0), ended(75), ended(1)]) == 1
    assert worst([ended(0), ended(75)]) == 75
    assert worst([ended(0), ended(0)]) == 0


def test_clock() -> None:
    assert [clock(59.6), clock(3600 * 23), clock(86400 * 2 + 61)] == ["0:01:00", "23:00:00", "2-00:01:01"]


def test_a_job_does_not_inherit_the_one_it_is_submitted_from() -> None:
    outside = {"PATH": "/bin", "SLURM_CONF": "/etc/slurm.conf", "SLURM_TIME_FORMAT": "relative", "RANK": "1"}
    assert slurm.clean(outside) == outside
    inside = {**outside, "SLURM_JOB_ID": "9", "SLURM_STEP_ID": "0", "SLURM_RESTART_COUNT": "2"}
    assert slurm.clean(inside) == {"PATH": "/bin", "SLURM_CONF": "/etc/slurm.conf"}


@pytest.mark.parametrize(
    ("then", "said"),
    [
        ("frobnicate", "No such command 'frobnicate'"),
        ("convert", "No such command ''"),
        ("report", "Missing argument"),
        ("report {run} --nope", "No such option"),
        ("generate {run} --prompt x --top-k many", "Invalid value for '--top-k'"),
    ],
)
def test_what_follows_is_tried_on_the_command_line_at_once(then: str, said: str, tmp_path: Path) -> None:
    """The job that would tell of the mistake may start in days."""
    config = Path(__file__).parents[2] / "configs/runs/demo.yaml"
    program = "import sys; from bigtrain.cli import main; main()"
    words = ["submit", str(config), f"training.output_dir={tmp_path / 'run'}", "--dry-run", "--then", then]
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: --then '{then.replace('{run}', str(tmp_path / 'run'))}': ")
    assert said in done.stderr


def test_other_commands_do_not_load_what_submits() -> None:
    program = "import sys, bigtrain.cli; print('submitit' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
