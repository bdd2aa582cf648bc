"""The doctor in jobs of a real Slurm."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from slurm_cluster import PATIENCE, Cluster, wait_for
from strikes import Runs

pytestmark = pytest.mark.slurm


def doctor(
    runs: Runs, name: str, *overrides: str, nodes: int = 3, cwd: Path | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """In an allocation, as from a shell of `salloc`."""
    command = [
        "salloc",
        "--quiet",
        "--no-kill",
        f"--nodes={nodes}",
        f"--nodelist=n[1-{nodes}]",
        sys.executable,
        "-m",
        "bigtrain",
        "doctor",
        str(runs.config),
    ]
    words = [f"training.output_dir={runs.folder / name}", "training.global_batch_size=24", *overrides]
    return runs.cluster.run(*command, *words, cwd=cwd, COLUMNS="200", **variables)


def test_healthy_nodes(runs: Runs) -> None:
    done = doctor(runs, "healthy")
    assert done.returncode == 0, done.stdout + done.stderr
    *rows, last = done.stdout.splitlines()
    assert last == "all fit"
    assert all(row.startswith(" all 3 nodes ") for row in rows[1:]), done.stdout
    (gpus,) = [row for row in rows if " GPUs " in row]
    assert "none: computing on the CPU" in gpus
    assert not (runs.folder / "healthy").exists()


def test_in_a_shell_on_the_first_node(runs: Runs) -> None:
    """Where a site says so, `salloc` opens its shell there, in a step which is not that of a run."""
    shell = runs.folder / "shell"
    command = [sys.executable, "-m", "bigtrain", "doctor", str(runs.config)]
    words = [f"training.output_dir={runs.folder / 'interactive'}", "launch.checkup_timeout=60"]
    shell.write_text(f"#!/bin/sh\necho step $SLURM_STEP_ID\nexec {shlex.join([*command, *words])}\n")
    shell.chmod(0o755)
    allocate = ["salloc", "--quiet", "--nodes=2", "--nodelist=n[1-2]"]
    done = runs.cluster.run(*allocate, COLUMNS="200", SHELL=str(shell))
    assert done.returncode == 0, done.stdout + done.stderr
    first, *_, last = done.stdout.splitlines()
    assert (first, last) == ("step 4294967290", "all fit")
    assert " all 2 nodes " in done.stdout


def test_gpus_that_slurm_has_and_torch_has_not(runs: Runs) -> None:
    """Its fake ones. A run that asks for GPUs would not start; one that does not says what it computes on."""
    given = {"SALLOC_GPUS_PER_NODE": "2"}
    done = doctor(runs, "gpus", nodes=2, **given)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Slurm gives 2, and this torch computes on the CPU" in done.stdout
    done = doctor(runs, "gpus", "launch.gpus_per_node=2", nodes=2, **given)
    assert done.returncode == 2
    assert done.stdout.splitlines()[-1] == "no fault of single nodes, and to be mended for all: GPUs"


def test_a_folder_that_is_not_shared(runs: Runs, tmp_path: Path) -> None:
    """Each node starts in a folder of its own, as one on its own disk is."""
    for node in runs.cluster.nodes:
        (tmp_path / node / "run").mkdir(parents=True)
    prefix = ["sh", "-c", f'cd {tmp_path}/$SLURMD_NODENAME && exec "$@"', "sh"]
    done = doctor(runs, "/proc/self/cwd/run", cwd=tmp_path / "n1", BIGTRAIN_PREFIX=shlex.join(prefix))
    assert done.returncode == 2, done.stdout + done.stderr
    assert (
        "training.output_dir is another folder here than where the job's first process runs: not shared" in done.stdout
    )
    assert done.stdout.splitlines()[-1] == "no fault of single nodes, and to be mended for all: run's folder"


def test_a_node_that_died_since(runs: Runs, cluster: Cluster) -> None:
    """Slurm does not know it yet, and nothing of an earlier job was left for the node to report: while something is,
    Slurm gives the node to no other job."""
    _all_idle(cluster)
    cluster.kill("n2")
    try:
        done = doctor(runs, "died")
        assert done.returncode == 2, done.stdout + done.stderr
        assert done.stdout.splitlines()[-1] == "to start without n2: sbatch --exclude=n2, or launch.exclude=n2"
    finally:
        cluster.revive("n2")
    _all_idle(cluster)


def _all_idle(cluster: Cluster) -> None:
    command = ["sinfo", "--noheader", "--partition=main", "--format=%T"]
    wait_for("idle nodes", lambda: cluster.ask(*command).split() == ["idle"], PATIENCE)
