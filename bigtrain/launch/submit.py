"""`bigtrain submit`: a configuration becomes a job in Slurm's queue, or an array of them, and others follow it."""

import hashlib
import json
import re
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bigtrain.config import Config, to_yaml, validate
from bigtrain.errors import DataError, LaunchError, UserError
from bigtrain.finetune.inputs import open_task
from bigtrain.finetune.load import load_task_config
from bigtrain.launch import batch, partitions, slurm
from bigtrain.launch.submitted import FOLDER, STOP, Submitted, jobs_of, newest_job, record, runs_of
from bigtrain.launch.sweep import Variant, own_places, variants
from bigtrain.training import records
from bigtrain.training.inputs import open_inputs
from bigtrain.training.preflight import preflight

_ONE_NODE = {"nodes": 1, "spare_nodes": 0, "elastic": False, "chain": False}


@dataclass(frozen=True)
class Plan:
    """What is to be submitted. Nothing of it is written yet."""

    folder: Path
    """The run's, or the sweep's."""
    runs: dict[str, Config]
    """By name within a sweep; of a single run the name is empty."""
    followers: list[list[str]]
    """Words after `bigtrain`, one list for each job that follows."""

    @property
    def config(self) -> Config:
        """The run's, or that of a sweep's first, which asks of Slurm what the others do."""
        return next(iter(self.runs.values()))

    @property
    def is_sweep(self) -> bool:
        """Whether the runs are the tasks of an array."""
        return "" not in self.runs

    @property
    def name(self) -> str:
        """The job's."""
        return (None if self.is_sweep else self.config.logging.run_name) or self.folder.name


def plan(path: Path, overrides: Sequence[str], sweeps: Sequence[str] = (), then: Sequence[str] = ()) -> Plan:
    """Read what is to be submitted, and check all that the configuration alone decides.

    Args:
        path: The configuration.
        overrides: Words like ``parallel.tensor=2``.
        sweeps: Words like ``optimizer.lr=1e-4,3e-4``.
        then: Commands such as ``report {run}``, in which `{run}` is the run's folder.

    Raises:
        UserError: Naming the key or option and what would be right.
    """
    folder = Path(load_task_config(path, overrides).training.output_dir).absolute()
    overrides = [*overrides, f"training.output_dir={json.dumps(str(folder))}"]
    base = load_task_config(path, overrides)
    runs = {"": base}
    if sweeps:
        runs = {v.name: _varied(path, overrides, base, v) for v in variants(sweeps)}
    for name, config in runs.items():
        with _of_run(name):
            validate(config, config.launch.nodes * processes_per_node(config))
    _check_combinations(base, sweeps, then)
    runs = {name: _resolved(config) for name, config in runs.items()}
    return Plan(folder, runs, [[word.replace("{run}", str(folder)) for word in shlex.split(text)] for text in then])


def _check_combinations(config: Config, sweeps: Sequence[str], then: Sequence[str]) -> None:
    if sweeps and then:
        raise LaunchError("--then follows one run: with --sweep submit what follows by itself, --after its folder")
    if sweeps and config.launch.chain:
        raise LaunchError("--sweep cannot be had with launch.chain: one task cannot submit its array again")
    if then and config.launch.chain:
        raise LaunchError(
            "--then cannot be had with launch.chain: what follows would wait for the first of several jobs, "
            "which ends before the run does"
        )


def processes_per_node(config: Config) -> int:
    """Processes that a node will start: as said, else one a GPU, else its share of one copy of the model."""
    launch = config.launch
    copy = -(-config.parallel.model_parallel_size // launch.nodes)
    return launch.processes_per_node or launch.gpus_per_node or copy


def _resolved(config: Config) -> Config:
    """The configuration with the number of processes that was validated, whatever a node may show it has."""
    launch = config.launch.model_copy(update={"processes_per_node": processes_per_node(config)})
    return config.model_copy(update={"launch": launch})


def check_slurm(plan: Plan) -> None:
    """Ask Slurm whether the job could run.

    Raises:
        LaunchError: There is no Slurm, or no partition that can meet the job's wishes.
    """
    if not slurm.has_slurm():
        raise LaunchError(
            "there is no Slurm here: sbatch is not in PATH. Submit from a login node of the cluster; on this machine "
            "`bigtrain pretrain` trains, and `bigtrain submit --dry-run` prints the script"
        )
    partitions.check(plan.config.launch, partitions.offered())


def check_files(plan: Plan) -> None:
    """Open what every run will read, and make its folder.

    Raises:
        UserError: Naming the key or file and what would be right.
    """
    for name, config in plan.runs.items():
        with _of_run(name):
            try:
                preflight(config, open_inputs if config.finetune.task is None else open_task).close()
            except DataError as error:
                hint = "if it is seen from the compute nodes alone, submit with --no-check-files"
                raise DataError(f"{error} ({hint})") from None


def dependencies(after: Sequence[str]) -> list[str]:
    """Ids of the jobs that must have succeeded before; of a run that is done there is none.

    Args:
        after: Job ids, or folders of runs or sweeps, which mean their newest job.

    Raises:
        LaunchError: A job is not known, or has failed.
    """
    return [job_id for word in after if (job_id := _dependency(word)) is not None]


def script_text(plan: Plan, after: Sequence[str] = ()) -> str:
    """The batch script as it would be submitted, and those of what follows it.

    Raises:
        LaunchError: `launch.sbatch` gives an option that has a key of its own.
    """
    configs = [_kept_config(config) for config in plan.runs.values()]
    texts = [_script(plan, after).text(batch.run_command(plan.config, plan.folder, configs))]
    for words in plan.followers:
        command = batch.follower_command(plan.config, plan.folder, words)
        texts.append(_follower(plan, words, "ID").text(command))
    return "\n".join(texts)


def send(plan: Plan, after: Sequence[str] = ()) -> list[Submitted]:
    """Write down and submit; gives the run's or the sweep's job, then those that follow it.

    Raises:
        LaunchError: A run has a job already, or Slurm refuses.
    """
    _refuse_running(plan, after)
    configs = []
    for config in plan.runs.values():
        configs.append(path := _kept_config(config))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(to_yaml(config), encoding="utf-8")
        (Path(config.training.output_dir) / STOP).unlink(missing_ok=True)
    job_id, script = _script(plan, after).submit_command(batch.run_command(plan.config, plan.folder, configs))
    now, chain = time.time(), plan.config.launch.chain
    if plan.is_sweep:
        folders = [config.training.output_dir for config in plan.runs.values()]
        first = Submitted(job_id, now, str(script), tasks=tuple(folders), chain=chain)
        record(plan.folder, first)
        for number, (folder, path) in enumerate(zip(folders, configs, strict=True)):
            output = str(plan.folder / FOLDER / f"{job_id}_{number}.out")
            record(Path(folder), Submitted(f"{job_id}_{number}", now, str(script), str(path), output, chain=chain))
    else:
        output = str(plan.folder / FOLDER / f"{job_id}.out")
        first = Submitted(job_id, now, str(script), str(configs[0]), output, chain=chain)
        record(plan.folder, first)
    return [first, *_send_followers(plan, first)]


def _send_followers(plan: Plan, first: Submitted) -> list[Submitted]:
    sent = [first]
    for words in plan.followers:
        made = _follower(plan, words, sent[-1].id)
        try:
            job_id, script = made.submit_command(batch.follower_command(plan.config, plan.folder, words))
        except LaunchError as error:
            raise LaunchError(f"the run is submitted as job {first.id}, but not {shlex.join(words)}: {error}") from None
        output = str(plan.folder / FOLDER / f"{job_id}.out")
        sent.append(Submitted(job_id, first.time, str(script), output=output, command=shlex.join(words)))
        record(plan.folder, sent[-1])
    return sent[1:]


def _script(plan: Plan, after: Sequence[str]) -> batch.Script:
    return batch.script(
        plan.config.launch,
        plan.folder / FOLDER,
        plan.name,
        processes=max(map(processes_per_node, plan.runs.values())),
        tasks=len(plan.runs) if plan.is_sweep else 0,
        after=after,
    )


def _follower(plan: Plan, words: Sequence[str], after: str) -> batch.Script:
    launch = plan.config.launch.model_copy(update=_ONE_NODE)
    return batch.script(
        launch,
        plan.folder / FOLDER,
        f"{plan.name} {words[0]}",
        processes=processes_per_node(plan.config),
        after=[after],
    )


def _kept_config(config: Config) -> Path:
    """Where a configuration is kept as submitted: named after its content, so that a queued job's never changes."""
    digest = hashlib.sha256(to_yaml(config).encode()).hexdigest()[:12]
    return Path(config.training.output_dir) / FOLDER / f"config-{digest}.yaml"


def _varied(path: Path, overrides: Sequence[str], base: Config, variant: Variant) -> Config:
    with _of_run(variant.name):
        return load_task_config(path, [*overrides, *variant.overrides, *own_places(base, variant)])


@contextmanager
def _of_run(name: str) -> Iterator[None]:
    """A mistake in one run of a sweep is told with the run's name."""
    try:
        yield
    except UserError as error:
        raise type(error)(f"{name}: {error}") if name else error from None


def _refuse_running(plan: Plan, after: Sequence[str]) -> None:
    """Two jobs must not write to one run's folder at the same time."""
    newest: dict[str, Path] = {}
    for folder in {plan.folder, *(Path(config.training.output_dir) for config in plan.runs.values())}:
        newest |= {job.id: folder for job in jobs_of(folder)[-1:] if job.id.split("_")[0] not in after}
    for job in slurm.jobs(list(newest)).values() if newest else ():
        if not job.ended:
            folder = newest.get(job.id, plan.folder)
            raise LaunchError(
                f"{folder} has job {job.id} already, which is {job.state}: end it with `bigtrain stop {folder}`, "
                f"or submit this one to run --after {job.id.split('_')[0]}"
            )


def _dependency(word: str) -> str | None:
    if re.fullmatch(r"\d+(_\d+)?", word):
        if not slurm.jobs([word]):  # Slurm itself would take it for one that is done
            raise LaunchError(f"--after {word}: Slurm knows no such job, or no more; give the run's folder")
        return word
    run = Path(word)
    job = newest_job(run)
    if job.chain:
        raise LaunchError(f"--after {word}: its jobs follow one another (launch.chain), and the last is not known yet")
    found = slurm.jobs([job.id]).values()
    if any(not task.ended for task in found):
        return job.id
    if not all(map(_is_done, runs_of(run))):
        states = ", ".join(sorted({task.state for task in found})) or "some time ago"
        raise LaunchError(
            f"--after {word}: its job {job.id} has ended ({states}) before the run was done; submit it again first"
        )
    return None


def _is_done(run: Path) -> bool:
    """Whether the last thing that happened is that all steps were done."""
    events = [row["event"] for row in records.read_rows(run / records.EVENTS)]
    return events[-1:] == ["stop"]
