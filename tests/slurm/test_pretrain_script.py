"""slurm/pretrain.sh on this machine, without Slurm."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "slurm" / "pretrain.sh"
CONFIG = SCRIPT.parents[1] / "configs" / "runs" / "demo.yaml"


def pretrain(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "BIGTRAIN_"))}
    return subprocess.run(
        ["bash", SCRIPT, *arguments],
        cwd=folder,
        env={**env, "BIGTRAIN_PYTHON": sys.executable, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_a_configuration_it_tells_its_use(tmp_path: Path) -> None:
    done = pretrain(tmp_path)
    assert done.returncode == 2
    assert "bash slurm/pretrain.sh CONFIG [key=value ...]" in done.stderr
    assert "BIGTRAIN_NPROC" in done.stderr


def test_a_configuration_that_is_not_there(tmp_path: Path) -> None:
    """The exit code and the message are the command's own; paths are those of the folder it was called in."""
    done = pretrain(tmp_path, "nothing.yaml")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: cannot read the configuration nothing.yaml")


def test_overrides_and_the_number_of_processes_are_passed_on(tmp_path: Path) -> None:
    """Three processes do not hold copies of a model over four; spaces in a value stay where they are."""
    words = ["parallel.tensor=4", f"training.output_dir={tmp_path / 'a run'}"]
    done = pretrain(tmp_path, str(CONFIG), *words, BIGTRAIN_NPROC="3")
    assert done.returncode == 2
    assert "tensor (4)" in done.stderr
    assert "3" in done.stderr


def test_a_python_that_is_not_there(tmp_path: Path) -> None:
    done = pretrain(tmp_path, str(CONFIG), BIGTRAIN_PYTHON=str(tmp_path / "python"))
    assert done.returncode == 127
    assert str(tmp_path / "python") in done.stderr


def test_slurm_reads_its_options_at_the_top() -> None:
    """Slurm stops reading at the first line that is no comment."""
    lines = SCRIPT.read_text().splitlines()
    top = lines[: next(number for number, line in enumerate(lines) if line and not line.startswith("#"))]
    options = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")]
    assert options == [line.removeprefix("#SBATCH ") for line in top if line.startswith("#SBATCH ")]
    assert {"--requeue", "--open-mode=append", "--ntasks-per-node=1", "--signal=USR1@120"} <= set(options)
