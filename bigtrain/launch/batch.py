"""Batch scripts, made and submitted by submitit: `sbatch` options out of the configuration, then plain shell."""

import io
import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from submitit import SlurmExecutor
from submitit.core.utils import FailedJobError

import bigtrain
from bigtrain.config import Config
from bigtrain.config.launch import LaunchConfig
from bigtrain.errors import LaunchError
from bigtrain.launch import slurm

PROJECT = Path(bigtrain.__file__).resolve().parents[1]
_SCRIPT = PROJECT / "slurm" / "pretrain.sh"
_OURS = {
    "nodes": "launch.nodes",
    "gpus-per-node": "launch.gpus_per_node",
    "cpus-per-task": "launch.cpus_per_node",
    "mem": "launch.memory_gb_per_node",
    "time": "launch.time",
    "partition": "launch.partition",
    "account": "launch.account",
    "qos": "launch.qos",
    "constraint": "launch.constraint",
    "exclude": "launch.exclude",
    "signal": "launch.warning_seconds",
    "requeue": "launch.chain",
    "no-requeue": "launch.chain",
    "no-kill": "launch.elastic",
    "dependency": "--after",
    "array": "--sweep",
}
"""Options of `sbatch` that have a key of their own."""
_FIXED = ("output", "error", "open-mode", "ntasks", "ntasks-per-node", "chdir", "kill-on-invalid-dep")
"""Options that a run relies on."""


class Script(SlurmExecutor):
    """submitit's executor, for a job that is shell commands in place of a pickled function."""

    chain = False
    """Whether the job submits its own script again at its time limit."""

    @classmethod
    def affinity(cls) -> int:
        return 2  # a script can be written where no Slurm is

    def text(self, command: str) -> str:
        """The script as it would be submitted."""
        return self._make_submission_file_text(command, "ID")

    def submit_command(self, command: str) -> tuple[str, Path]:
        """Submit it; gives the job's id and the script, which is kept.

        Raises:
            LaunchError: Slurm refuses.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with redirect_stderr(io.StringIO()):  # it says there what the exception says
                job = self._submit_command(command)
        except FailedJobError as error:
            raise LaunchError(f"Slurm refuses the job: {_first_said(str(error))}") from None
        return job.job_id, job.paths.submission_file

    def _make_submission_file_text(self, command: str, uid: str) -> str:
        if self.chain:
            kept = self.folder / f".submission_file_{uid}.sh"  # submitit makes it a link to what it renames
            command = f"export BIGTRAIN_SUBMISSION={shlex.quote(str(kept))}\n{command}"
        return super()._make_submission_file_text(command, uid)

    def _make_submission_command(self, submission_file_path: Path) -> list[str]:
        dropped = sorted(set(os.environ) - set(slurm.clean(os.environ)))
        return ["env", *(f"--unset={name}" for name in dropped), "sbatch", str(submission_file_path)]


def script(
    launch: LaunchConfig,
    folder: Path,
    name: str,
    *,
    processes: int,
    tasks: int = 0,
    after: Sequence[str] = (),
) -> Script:
    """A job as `launch` describes it.

    Args:
        launch: What to ask for.
        folder: Where the script is kept and the output goes.
        name: The job's.
        processes: On each node.
        tasks: Of an array; 0: a job of its own.
        after: Ids of jobs that must have succeeded before.

    Raises:
        LaunchError: `launch.sbatch` gives an option that has a key of its own.
    """
    _check_further(launch)
    made = Script(folder)
    made.chain = launch.chain
    made.update_parameters(**_options(launch, folder, name, processes, tasks, after))
    if tasks:
        made.parameters["map_count"] = tasks
    return made


def _check_further(launch: LaunchConfig) -> None:
    for option in launch.sbatch:
        if option in _OURS:
            raise LaunchError(f"launch.sbatch.{option}: this is said with {_OURS[option]}")
        if option in _FIXED:
            raise LaunchError(f"launch.sbatch.{option}: a run relies on its own; leave it out")


def _options(
    launch: LaunchConfig, folder: Path, name: str, processes: int, tasks: int, after: Sequence[str]
) -> dict[str, Any]:
    """submitit's parameters; None: not said."""
    whole = launch.gpus_per_node > 0 and launch.cpus_per_node is None
    cores = launch.cpus_per_node or (None if whole else processes)
    memory = launch.memory_gb_per_node or (0 if launch.gpus_per_node else None)
    escaped = str(folder.absolute()).replace("%", "%%")
    further: dict[str, Any] = {
        "output": f"{escaped}/{'%A_%a' if tasks else '%j'}.out",
        "open-mode": "append",  # a job that runs again goes on writing to the same file
        "chdir": str(Path.cwd()),
        "signal": f"USR1@{launch.warning_seconds}",
        "no-requeue" if launch.chain else "requeue": True,
        **({"no-kill": True} if launch.spare_nodes or launch.elastic else {}),
        **({"dependency": f"afterok:{':'.join(after)}", "kill-on-invalid-dep": "yes"} if after else {}),
        **{option: value or True for option, value in launch.sbatch.items()},
    }
    return {
        "job_name": name,
        "nodes": launch.nodes + launch.spare_nodes,
        "ntasks_per_node": 1,
        "cpus_per_task": cores,
        "gpus_per_node": launch.gpus_per_node or None,
        "mem": None if memory is None else f"{memory}G" if memory else "0",
        "exclusive": True if whole else None,
        "time": launch.time,
        "partition": launch.partition,
        "account": launch.account,
        "qos": launch.qos,
        "constraint": launch.constraint,
        "exclude": launch.exclude,
        "wckey": None,
        "setup": launch.setup or None,
        "stderr_to_stdout": True,
        "use_srun": False,
        "additional_parameters": further,
    }


def run_command(config: Config, folder: Path, configs: Sequence[Path]) -> str:
    """The last lines of a run's script.

    Args:
        config: The run's, or that of a sweep's first.
        folder: The run's, or the sweep's.
        configs: The configurations as submitted, one for each task of the array.

    Raises:
        LaunchError: The package is installed without its project.
    """
    if not _SCRIPT.is_file():
        raise LaunchError(
            f"{_SCRIPT} is missing: install BigTrain from a checkout with `pip install -e`, which keeps it"
        )
    launch = config.launch
    # How many processes a node starts is in the configuration, and must not be told by where this was called.
    lines = [f"export BIGTRAIN_PYTHON={shlex.quote(sys.executable)}", "unset BIGTRAIN_NPROC"]
    if config.finetune.task is not None:
        lines.append("export BIGTRAIN_COMMAND=finetune")
    if launch.container_image is not None:
        variable = "BIGTRAIN_SRUN_ARGS" if launch.container_runtime == "pyxis" else "BIGTRAIN_PREFIX"
        lines += [*_python_path(config), f"export {variable}={shlex.quote(shlex.join(_container(config, folder)))}"]
        lines.append("export BIGTRAIN_NODE_PYTHON=python3")
    chosen = shlex.quote(str(configs[0]))
    if len(configs) > 1:
        lines += ["configs=(", *(f"  {shlex.quote(str(path))}" for path in configs), ")"]
        chosen = '"${configs[SLURM_ARRAY_TASK_ID]}"'
    return "\n".join([*lines, f"exec bash {shlex.quote(str(_SCRIPT))} {chosen}"])


def follower_command(config: Config, folder: Path, words: Sequence[str]) -> str:
    """The last lines of a script that runs `bigtrain` with these words on one node, where the run's processes live."""
    container = _container(config, folder)
    python = "python3" if container else sys.executable
    step = ["srun", "--ntasks=1"] if container and config.launch.container_runtime == "pyxis" else []
    return "\n".join(
        [*_python_path(config), f"exec {shlex.join([*step, *container, python, '-m', 'bigtrain', *words])}"]
    )


def _container(config: Config, folder: Path) -> list[str]:
    """What opens the container: options of `srun` for Pyxis, words before the command for Apptainer."""
    launch = config.launch
    if launch.container_image is None:
        return []
    here, image = str(Path.cwd()), launch.container_image
    own = [str(PROJECT), here, str(folder)]
    mounts = ",".join([*(f"{folder}:{folder}" for folder in dict.fromkeys(own)), *launch.container_mounts])
    if launch.container_runtime == "pyxis":
        return [f"--container-image={image}", f"--container-mounts={mounts}", f"--container-workdir={here}"]
    nvidia = ["--nv"] if launch.gpus_per_node else []
    return ["apptainer", "exec", *nvidia, "--bind", mounts, "--pwd", here, image]


def _python_path(config: Config) -> list[str]:
    """Inside a container the package is the mounted project's."""
    if config.launch.container_image is None:
        return []
    return [f"export PYTHONPATH={shlex.quote(str(PROJECT))}${{PYTHONPATH:+:$PYTHONPATH}}"]


def _first_said(text: str) -> str:
    """sbatch's message without its own name in front of every line."""
    lines = [line.removeprefix("sbatch: error: ").strip() for line in text.splitlines()]
    return "; ".join(line for line in lines if line) or "it does not say why"
