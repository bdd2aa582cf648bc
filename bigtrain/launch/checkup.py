"""A look at a job's nodes before a run starts on them: is each fit, are they alike, do they talk to one another.

`checkup` runs in the job's batch step, or in a shell of `salloc`. It starts one small program a node (`checkup_node`),
joins what these say (`checkup_verdicts`) and names the nodes that a run would be better off without.
"""

import json
import os
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter

from bigtrain.checkpoint.places import checkpoint_folder, is_local
from bigtrain.config import Config
from bigtrain.errors import ConfigError, LaunchError
from bigtrain.launch import slurm
from bigtrain.launch.checkup_answer import LINE, Answer, Asked
from bigtrain.launch.checkup_verdicts import Report, judge
from bigtrain.models.size import parameter_count

_GRACE_SECONDS = 10.0
"""For Slurm to start the programs and to bring their words back."""
_BYTES_PER_PARAMETER = 12  # in a checkpoint: float32 weights and Adam's two moments
_ANSWER = TypeAdapter(Answer)
_ENDED = re.compile(r": tasks? [\d,-]+: ")
"""How a task ended, as `srun` tells it: it kills those of good nodes too, when it cannot reach another."""


def checkup(
    config: Config,
    nodes: Sequence[str],
    *,
    srun_options: Sequence[str] = (),
    python: Sequence[str] = (sys.executable,),
    seconds: float = 120.0,
) -> Report:
    """Look at the nodes of this job. Takes some seconds beside the import of torch, and `seconds` at most, about.

    Args:
        config: The run's. Its folder is made if it is not there; nothing is left in it.
        nodes: Names of nodes of this job, in Slurm's order.
        srun_options: Further options of `srun`.
        python: Words that start Python on a node.
        seconds: Time limit. A node that has not answered by then is named.

    Raises:
        ConfigError: The run's folder cannot be written here.
        LaunchError: There is no `srun` here.
    """
    start = time.monotonic()
    with _marker(Path(config.training.output_dir)) as (marker, token):
        folder = checkpoint_folder(config)
        asked = Asked(seconds, str(marker), token, str(folder) if is_local(folder) else "", _datasets(config))
        reached: Sequence[str] = nodes
        said, errors = _ask(nodes, asked, srun_options, python)
        if len(_answers(said)) < len(nodes):  # of a node that is lost others suffer too: once more without it
            reached = slurm.answering(nodes) or nodes
            if len(reached) < len(nodes):
                said, errors = _ask(reached, asked, srun_options, python)
    answers = _answers(said)
    silent = dict.fromkeys((node for node in nodes if node not in reached), "Slurm can start nothing there")
    return judge(
        nodes,
        answers,
        silent | _silent(reached, answers, errors, seconds),
        checkpoint_bytes=_BYTES_PER_PARAMETER * parameter_count(config.model),
        checkpoints=_checkpoints_to_come(config, folder),
        wants_gpus=config.launch.gpus_per_node > 0,
        seconds=time.monotonic() - start,
    )


def _ask(
    nodes: Sequence[str], asked: Asked, srun_options: Sequence[str], python: Sequence[str]
) -> tuple[list[str], list[str]]:
    """The lines that the nodes' programs and Slurm wrote to stdout and to stderr, each with its task's number."""
    step = slurm.step(nodes, "--label", *srun_options)
    program = [*python, "-m", "bigtrain.launch.checkup_node", json.dumps(asdict(asked))]
    try:
        process = subprocess.Popen(
            [*step, *program], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    except FileNotFoundError:
        raise LaunchError("there is no Slurm here: `srun` is not in PATH") from None
    try:
        said, errors = process.communicate(timeout=asked.seconds + _GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.terminate()
        try:
            said, errors = process.communicate(timeout=_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            said, errors = process.communicate()
    return said.splitlines(), errors.splitlines()


def _answers(lines: Sequence[str]) -> dict[str, Answer]:
    found = (_ANSWER.validate_json(line.partition(LINE)[2]) for line in lines if LINE in line)
    return {answer.name: answer for answer in found}


def _silent(
    nodes: Sequence[str], answers: Mapping[str, Answer], errors: Sequence[str], seconds: float
) -> dict[str, str]:
    """Why nodes have not answered, by the last that their programs or Slurm wrote to stderr.

    Where no node has and Slurm names some that it could not reach, it is these: it does not start the others then.
    """
    missing = [node for node in nodes if node not in answers]
    slurms = [line for line in errors if line.startswith("srun:") and not _ENDED.search(line)]
    found = {}
    for node in missing:
        label = re.compile(rf"\s*{nodes.index(node)}: ")
        own = [label.sub("", line, count=1) for line in errors if label.match(line)]
        of_it = [line for line in slurms if re.search(rf"\b{re.escape(node)}\b", line)]
        if own or of_it:
            found[node] = (own or of_it)[-1].strip()
    if answers or not found:
        last = f": {errors[-1].strip()}" if errors and not answers else ""
        found = dict.fromkeys(missing, f"none within {seconds:.0f} s{last}") | found
    return found


@contextmanager
def _marker(folder: Path) -> Iterator[tuple[Path, str]]:
    """A file in the run's folder with a word in it that nobody can know who does not see it."""
    token = secrets.token_hex(8)
    marker = (folder / f".checkup-{token}").absolute()
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        marker.write_text(token)
    except OSError as error:
        raise ConfigError(f"training.output_dir {folder} cannot be written: {error.strerror}") from None
    try:
        yield marker, token
    finally:
        for path in folder.glob(f"{marker.name}*"):  # a node that hung has left its own
            path.unlink(missing_ok=True)
        if made:
            with suppress(OSError):  # something else is in it by now
                folder.rmdir()


def _datasets(config: Config) -> dict[str, str]:
    found = {"data.train": config.data.train, "data.validation": config.data.validation}
    found |= {f"data.sources.{name}.path": source.path for name, source in config.data.sources.items()}
    return {key: _absolute(path) for key, path in found.items() if path is not None}


def _absolute(path: str) -> str:
    return path if "://" in path else os.path.abspath(path)  # noqa: PTH100 (a path may be a link)


def _checkpoints_to_come(config: Config, folder: Path) -> int:
    """Of those that lie on the disk at once: what is kept, and the one that is being written."""
    there = len(list(folder.glob("step-*"))) if is_local(folder) else 0
    return max(1, (config.checkpoint.keep_last or 1) + 1 - there)
