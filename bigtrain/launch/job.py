"""A run's Slurm job, from its batch step: start a launcher on each node, and see to what comes after.

    launchers end with 0     the run is done
    2, a user's mistake      so does the job: trying again would not help
    75, asked to stop        back into the queue, unless the job was cancelled or `bigtrain stop` has asked; not when it
                             was asked soon after its start three times in a row
    otherwise, a fault       again at once on the nodes that answer, if they are enough; else by way of the queue.
                             Not when the run has failed three times in a row at the same step

A node that is lost takes the job with it, and Slurm puts that back into the queue, unless it was submitted with
`--no-kill`: then what is left, and the spare nodes, go on here.
"""

import math
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from bigtrain.config import Config, to_yaml, validate
from bigtrain.errors import EXIT_REQUEUE, EXIT_USER_ERROR, ConfigError, LaunchError
from bigtrain.launch import slurm
from bigtrain.launch.checkup import checkup
from bigtrain.launch.environment import expand_hosts, gpus_on_node
from bigtrain.launch.partitions import seconds_of
from bigtrain.launch.submitted import STOP, submit_again
from bigtrain.training import records

SAME_STEP = 3
"""Failures in a row without a step in between, after which a run is not started again."""
_ORDERLY = {"preempt", "stop", "fault"}
"""Events that end a start of a run."""
_SOON = 300.0
"""A job that has had fewer seconds, and less than half of its time limit, was told too soon to end."""
_RUNNING = ("RUNNING", "SIGNALING")
"""States of a job that Slurm neither ends nor has given up; the second only means that a signal is on its way."""
_TOLD_SOON = ".told-soon"
"""A file in the run's folder: how often in a row that was so."""
_OUTSIDE_STEPS = (None, "4294967290")
"""Values of SLURM_STEP_ID; the other is that of a shell which `salloc` opens on the first node (slurm.h)."""


@dataclass(frozen=True)
class Allocation:
    """What Slurm gave to the job, and how to start a launcher on a node of it."""

    job_id: str
    restart_count: int
    nodes: list[str]
    """Host names, in Slurm's order."""
    nproc: int
    """Processes on each node."""
    srun_options: list[str]
    python: list[str]
    """Words that start Python on a node; in a container it is another than this process's."""
    submission: Path | None
    """The batch script, where `bigtrain submit` wrote it."""
    is_batch: bool
    """Whether Slurm can put the job back into its queue."""


def is_batch_step(env: Mapping[str, str]) -> bool:
    """Whether this process has a job's nodes, but is not on each of them: a batch script, or a shell of `salloc`."""
    return "SLURM_JOB_ID" in env and env.get("SLURM_STEP_ID") in _OUTSIDE_STEPS and "RANK" not in env


def allocation(config: Config, nproc: int | None, env: Mapping[str, str]) -> Allocation:
    """What Slurm's variables in the batch step say; `nproc` is what the user says of processes a node.

    Raises:
        ConfigError: there are not more nodes than `launch.spare_nodes`.
    """
    nodes = expand_hosts(env["SLURM_JOB_NODELIST"])
    spare = config.launch.spare_nodes
    if len(nodes) <= spare:
        raise ConfigError(
            f"launch.spare_nodes is {spare}, and the job has {len(nodes)} node{'s' * (len(nodes) > 1)}: "
            f"ask for {spare} more than compute, `sbatch --nodes={spare + 1}` at least"
        )
    options = shlex.split(env.get("BIGTRAIN_SRUN_ARGS", ""))
    if "SLURM_CPUS_PER_TASK" in env:  # srun does not take it over from sbatch
        options.append(f"--cpus-per-task={env['SLURM_CPUS_PER_TASK']}")
    submission = env.get("BIGTRAIN_SUBMISSION")
    computing = len(nodes) - spare
    wanted = nproc or config.launch.processes_per_node or gpus_on_node(env)
    return Allocation(
        job_id=records.slurm_job_id(env) or "",
        restart_count=int(env.get("SLURM_RESTART_COUNT", "0")),
        nodes=nodes,
        nproc=wanted or -(-config.parallel.model_parallel_size // computing),
        srun_options=options,
        python=[*shlex.split(env.get("BIGTRAIN_PREFIX", "")), env.get("BIGTRAIN_NODE_PYTHON", sys.executable)],
        submission=Path(submission) if submission else None,
        is_batch=env.get("ENVIRONMENT") == "BATCH",
    )


def supervise(config: Config, words: Sequence[str], given: Allocation) -> int:
    """Keep the run going on the job's nodes until it is done, or must leave them.

    Args:
        config: The run's.
        words: Of the command, after `bigtrain`, as every node is to start it, without `--nproc`. Each finds the
            configuration on its standard input.
        given: The job's nodes.

    Returns:
        0: done; 2: a user's mistake; 75: stopped, and put back into the queue where that was possible; else the
        exit code of a fault that ended the run for good.

    Raises:
        UserError: The run cannot work on these nodes.
    """
    output_dir = Path(config.training.output_dir)
    validate(config, (len(given.nodes) - config.launch.spare_nodes) * given.nproc)
    _recall_unrecorded(output_dir)
    if given.restart_count and (loop := _crash_loop(output_dir)):
        _say(loop)
        return 1
    _survive_signals()
    nodes = _enough(config, given, _fit(config, given))
    if nodes is None:
        _record_fault(output_dir, None, given.nodes, given)
    while nodes is not None:
        code = _run_step(given, nodes, words, to_yaml(config))
        if code in (0, EXIT_USER_ERROR):
            return code
        if code == EXIT_REQUEUE or (output_dir / STOP).exists():  # a signal may have ended what was just starting
            return _requeue_unless_stopped(config, given)
        _record_fault(output_dir, code, nodes, given)
        if (job := _job(given)) is not None and job.state not in _RUNNING:
            _say(f"not started again: the job is {job.state}")
            return code
        if loop := _crash_loop(output_dir):
            _say(loop)
            return code
        nodes = _enough(config, given, _answering(given))
        _say(f"starting again on {','.join(nodes)}" if nodes else "too few nodes are left to start again")
    return _requeue(config, given)


def _fit(config: Config, given: Allocation) -> list[str]:
    """The nodes that have passed the checkup, which one alone does not need.

    Raises:
        LaunchError: it found what no choice of nodes would mend; or too few are fit, and to wait will not help.
    """
    seconds = config.launch.checkup_timeout
    if len(given.nodes) == 1 or not seconds:
        return given.nodes
    report = checkup(config, given.nodes, srun_options=given.srun_options, python=given.python, seconds=seconds)
    _say(report.text())
    fit = [node for node in given.nodes if node not in report.bad_nodes]
    lost = report.is_users and _enough(config, given, fit) is None
    if not report.ok and (lost or not report.bad_nodes):
        raise LaunchError("the run cannot start on these nodes: see the checkup above")
    return fit


def _run_step(given: Allocation, nodes: Sequence[str], words: Sequence[str], stdin: str) -> int:
    """Start the launchers, hand `stdin` to each, and wait until they have ended.

    `--wait`: when one node's launcher has ended, the others get 15 seconds: after a fault their processes may wait
    for ever for those that are gone. After an orderly stop all end at once: they meet for the last time when everything
    is written.
    """
    step = slurm.step(nodes, "--wait=15", *given.srun_options)
    launcher = [*given.python, "-m", "bigtrain", *words, "--nproc", str(given.nproc)]
    process = subprocess.Popen([*step, *launcher], stdin=subprocess.PIPE)
    process.communicate(stdin.encode())  # srun gives it to all of its tasks
    code = process.returncode
    return 128 - code if code < 0 else code


def _enough(config: Config, given: Allocation, fit: Sequence[str]) -> list[str] | None:
    """As many of these nodes as compute; with `launch.elastic` fewer will do. None: too few."""
    wanted = len(given.nodes) - config.launch.spare_nodes
    for count in range(min(wanted, len(fit)), 0, -1):
        if count < wanted and not config.launch.elastic:
            return None
        try:
            validate(config, count * given.nproc)
        except ConfigError:
            continue
        return list(fit[:count])
    return None


def _answering(given: Allocation) -> list[str]:
    """The nodes on which Slurm can start something."""
    answering = slurm.answering(given.nodes)
    for node in given.nodes:
        if node not in answering:
            _say(f"node {node} does not answer")
    return answering


def _requeue_unless_stopped(config: Config, given: Allocation) -> int:
    stop = Path(config.training.output_dir) / STOP
    if stop.exists():
        stop.unlink()
        _say("stopped as asked")
        return EXIT_REQUEUE
    job = _job(given)
    if job is not None and job.state not in _RUNNING:
        _say(f"not put back into the queue: the job is {job.state}")  # cancelled; or preempted, and Slurm has done it
        return EXIT_REQUEUE
    if job is not None and given.is_batch:
        _give_up_if_told_soon(Path(config.training.output_dir) / _TOLD_SOON, job)
    return _requeue(config, given)


def _give_up_if_told_soon(counter: Path, job: slurm.Job) -> None:
    """Slurm sends the warning at once where its time before the limit is the whole limit, and would do so for ever.

    Raises:
        LaunchError: this job, too, was told to end soon after its start, as those before it.
    """
    used, left = seconds_of(job.used) or 0.0, seconds_of(job.left)
    limit = math.inf if left is None else used + left
    if used >= min(_SOON, limit / 2) or limit == math.inf:
        counter.unlink(missing_ok=True)
        return
    count = int(counter.read_text()) + 1 if counter.exists() else 1
    if count < SAME_STEP:
        counter.write_text(str(count))
        return
    counter.unlink()
    raise LaunchError(
        f"job {job.id} had had {used:.0f} seconds of its time limit of {limit:.0f} when it was told to end, and its "
        "last two starts were as short, so it is not started again: the seconds of sbatch's --signal "
        "(launch.warning_seconds) must be well below --time. What was done is saved; submit it again with other times"
    )


def _requeue(config: Config, given: Allocation) -> int:
    """Have Slurm start the job again, or another in its place."""
    if not given.is_batch:
        _say("the same command goes on from here: this job is a shell, and Slurm cannot start it again")
        return EXIT_REQUEUE
    if config.launch.chain and given.submission is not None:
        follower = submit_again(Path(config.training.output_dir), given.submission, given.job_id)
        _say(f"followed by job {follower}")
    else:
        slurm.ask("scontrol", "requeue", given.job_id)
        _say("put back into the queue")
    return EXIT_REQUEUE


def _job(given: Allocation) -> slurm.Job | None:
    return next(iter(slurm.jobs([given.job_id]).values()), None)


def _record_fault(output_dir: Path, code: int | None, nodes: Sequence[str], given: Allocation) -> None:
    world_size = len(nodes) * given.nproc
    records.event(output_dir, "fault", _last_step(output_dir), world_size, exit_code=code, nodes=list(nodes))


def _recall_unrecorded(output_dir: Path) -> None:
    """Record an earlier start whose end nobody could record: its batch step was lost with its node, or killed."""
    events = list(records.read_rows(output_dir / records.EVENTS))
    if events and events[-1]["event"] not in _ORDERLY:
        records.event(output_dir, "fault", _last_step(output_dir), events[-1]["world_size"], exit_code=None)


def _last_step(output_dir: Path) -> int:
    step = 0
    for row in records.read_rows(output_dir / records.METRICS):
        step = row["step"]
    return step


def _crash_loop(output_dir: Path) -> str | None:
    """What to say where the last `SAME_STEP` starts have all failed at the same step."""
    ends = [row for row in records.read_rows(output_dir / records.EVENTS) if row["event"] in _ORDERLY]
    faults = list(takewhile(lambda row: row["event"] == "fault", reversed(ends)))[:SAME_STEP]
    steps = {row["step"] for row in faults}
    if len(faults) < SAME_STEP or len(steps) > 1:
        return None
    return (
        f"{output_dir}: the last {SAME_STEP} starts have all failed after step {steps.pop()}, so the next would too: "
        f"not started again. See what the job has printed above, and {output_dir}/logs; submit it anew when the cause "
        "is mended"
    )


def _survive_signals() -> None:
    """At preemption and `scancel` the batch step gets SIGTERM as its launchers do; it stays, to see how they end."""
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, lambda *_: None)


def _say(text: str) -> None:
    sys.stdout.write(f"== {text}, {time.strftime('%H:%M:%S')}\n")
    sys.stdout.flush()
