"""The processes of one node: started, watched, signalled and ended together.

In place of torchrun, which ends with 1 whatever its workers' exit codes, gives them 30 seconds after
SIGTERM, where writing a checkpoint may take longer, and dies of SIGUSR1.

    launcher   SIGTERM, SIGUSR1, SIGINT ->  passed on to every worker, then waited for without a deadline: the
                                            workers stop at the end of a step and end with 75. A second SIGINT
                                            kills. A second SIGTERM does not: Slurm may well send two.
    worker     ends with 0 or 75        ->  the others are waited for
    worker     ends with 2              ->  so do the others: a user's mistake is found by all, and rank 0 must not
                                            be interrupted while it tells; SIGKILL after a grace
    worker     ends otherwise           ->  the others may wait for it in a collective forever: SIGTERM, and
                                            SIGKILL after a grace
    launcher   dies                     ->  the kernel kills the workers

When all have ended the fault that came first is told, as the last thing on the terminal (`ending`). The logs of all but
the node's first worker lie on its own disk, and come to the run's folder when one has failed: of thousands of processes
that have nothing to tell, a shared file system has no thousands of files to hold.
"""

import ctypes
import math
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from bigtrain.errors import EXIT_REQUEUE, EXIT_USER_ERROR, ConfigError
from bigtrain.launch.ending import Ending, first_fault, obituary, oom_kills, state_of
from bigtrain.launch.environment import World
from bigtrain.training import faults, records

FORWARDED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_STDIN = "stdin"
_UNPLACED = "unplaced"
_LIBC = ctypes.CDLL(None)


@dataclass
class _Worker:
    rank: int
    process: subprocess.Popen[bytes]
    log: Path | None
    """Where its output goes, or went in the end; None: to the launcher's own."""
    log_start: int
    """Bytes that were in the log before this start."""
    seen: float = 0.0
    """When it was seen to have ended, in seconds since 1970."""
    killed_in: str = ""
    """State in which it had to be killed."""


@dataclass
class _Watch:
    """What has happened so far."""

    forwarded: set[int] = field(default_factory=set)
    """Signals passed on to the workers."""
    killed: bool = False
    """By a second SIGINT."""
    failed: list[_Worker] = field(default_factory=list)
    """Workers that ended with a fault of their own."""
    kill_at: float | None = None
    """When the workers that a failure left behind are killed, on the monotonic clock; None: nothing has failed."""

    def seconds_left(self) -> float | None:
        """Until `kill_at`; None: there is nothing to wait for but signals."""
        return None if self.kill_at in (None, math.inf) else max(0.0, self.kill_at - time.monotonic())


def run_workers(
    command: Sequence[str],
    world: World,
    *,
    log_dir: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: str = "",
    grace_seconds: float = 10.0,
) -> int:
    """Run `command` in `world.nproc` processes of this node and wait until all have ended.

    Each finds RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT in its environment,
    and OMP_NUM_THREADS where it was not set: its share of the cores. Rank 0 has the launcher's terminal, the others a
    log, which `training.records.LOG` names.
    If a worker fails, what it met goes to stderr when all have ended: what it put down itself (`training.faults`),
    else the last lines of its log, after a line that says which it was. To be called from the
    main thread: it handles signals.

    Args:
        command: The program and its arguments.
        world: Which processes to start, and where rank 0 listens.
        log_dir: Folder of the other ranks' output, `rank-00001.log` and so on, appended to: by the first of a node
            at once, by its others when a worker has failed. None: the terminal.
        env: The environment to start from; None: this process's.
        stdin: What each finds on its standard input.
        grace_seconds: From a failure to SIGKILL, for the workers it leaves behind.

    Returns:
        0 when all ended with 0; 2 when one ended with 2 (a user's mistake); 75 when they were stopped to be
        requeued; else the exit code of the first that failed, 128 + n after signal n.

    Raises:
        ConfigError: A log cannot be written, or the command cannot be started.
    """
    watch = _Watch()
    workers: list[_Worker] = []
    ooms_before = oom_kills()
    with _scratch() as folder, _signals() as next_signals:
        (folder / _STDIN).write_text(stdin, encoding="utf-8")
        common = {**(os.environ if env is None else env), faults.FOLDER: str(folder)}
        try:
            for environment in _environments(world, common):
                workers.append(_start(command, environment, log_dir))  # noqa: PERF401 (known to `finally` one by one)
            _supervise(workers, watch, next_signals, grace_seconds)
        finally:
            _kill(workers)  # where an exception came between
            for worker in workers:
                worker.process.wait()
        if log_dir is not None and (watch.failed or watch.killed):
            _keep_logs(workers, log_dir)
        endings = _endings(workers, folder)
    if watch.failed and not watch.killed:
        return _report(endings, watch, world.nnodes, oom_kills() - ooms_before)
    return _exit_code(endings, watch)


@contextmanager
def _scratch() -> Iterator[Path]:
    """A folder on the node's own disk for what is needed until the end. It stays if it has logs that found no place."""
    folder = Path(tempfile.mkdtemp(prefix="bigtrain-"))
    try:
        yield folder
    finally:
        if not (folder / _UNPLACED).exists():
            shutil.rmtree(folder, ignore_errors=True)


def _environments(world: World, env: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """One for each local rank."""
    cores = len(os.sched_getaffinity(0))
    defaults = {
        "OMP_NUM_THREADS": str(max(1, cores // world.nproc)),
        "PYTHONUNBUFFERED": "1",  # a killed worker has written all that it said,
        "PYTHONFAULTHANDLER": "1",  # and one that crashes in C says where
    }
    common = {
        "WORLD_SIZE": str(world.world_size),
        "LOCAL_WORLD_SIZE": str(world.nproc),
        "MASTER_ADDR": world.master_address,
        "MASTER_PORT": str(_free_port() if world.master_port is None else world.master_port),
    }
    for local_rank in range(world.nproc):
        ranks = {"RANK": str(world.node_rank * world.nproc + local_rank), "LOCAL_RANK": str(local_rank)}
        yield {**defaults, **env, **common, **ranks}


def _free_port() -> int:
    """A port that nobody listens on. Not one that the kernel may give to an outgoing connection before rank 0 is up."""
    while True:
        port = random.SystemRandom().randrange(15_000, 30_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            return port


def _start(command: Sequence[str], environment: dict[str, str], log_dir: Path | None) -> _Worker:
    rank = int(environment["RANK"])
    scratch = Path(environment[faults.FOLDER])
    environment.pop(records.LOG, None)
    log = None
    if log_dir is not None and rank > 0:
        is_first = environment["LOCAL_RANK"] == "0"
        log = (log_dir if is_first else scratch) / f"rank-{rank:05d}.log"
        environment[records.LOG] = str(log)
    output = _open_log(log) if log is not None else None
    log_start = output.tell() if output is not None else 0
    launcher = os.getpid()
    stdin = (scratch / _STDIN).open("rb")
    try:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=stdin,
            stdout=output,
            stderr=subprocess.STDOUT if output is not None else None,
            start_new_session=True,  # Ctrl-C reaches the launcher alone, and so each worker once
            preexec_fn=lambda: _die_with(launcher),
        )
    except OSError as error:
        raise ConfigError(f"cannot start {command[0]}: {error.strerror}") from None
    finally:
        stdin.close()
        if output is not None:
            output.close()
    return _Worker(rank, process, log, log_start)


def _open_log(path: Path) -> BinaryIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("ab")
    except OSError as error:
        raise ConfigError(f"cannot write the log {path}: {error.strerror}") from None


def _die_with(launcher: int) -> None:
    """In the child: be killed by the kernel when the launcher is gone, however it went."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != launcher:  # it went before the line above
        os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def _signals() -> Iterator[Callable[[float | None], Iterable[int]]]:
    """Gives a function that waits, some seconds at most, for signals and returns their numbers.

    They come through a pipe, so that none is lost between a look and a sleep.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    poll = select.poll()  # select() knows no descriptors beyond 1023, which a caller may have open
    poll.register(reader, select.POLLIN)

    def wait(timeout: float | None) -> bytes:
        return reader.recv(4096) if poll.poll(None if timeout is None else timeout * 1000) else b""

    wakeup_before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    before = {number: signal.signal(number, lambda *_: None) for number in (*FORWARDED, signal.SIGCHLD)}
    try:
        yield wait
    finally:
        signal.set_wakeup_fd(wakeup_before)
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        reader.close()
        writer.close()


def _supervise(
    workers: Sequence[_Worker],
    watch: _Watch,
    next_signals: Callable[[float | None], Iterable[int]],
    grace_seconds: float,
) -> None:
    running = list(workers)
    while running:
        for number in next_signals(watch.seconds_left()):
            if number in FORWARDED:
                _forward(number, running, watch)
        ended = [worker for worker in running if worker.process.poll() is not None]
        running = [worker for worker in running if worker not in ended]
        for worker in ended:
            worker.seen = time.time()
        watch.failed += [worker for worker in ended if _is_fault(worker.process.returncode, watch)]
        if watch.failed and watch.kill_at is None:
            if watch.failed[0].process.returncode != EXIT_USER_ERROR:
                for worker in running:
                    worker.process.terminate()
            watch.kill_at = time.monotonic() + grace_seconds
        elif watch.seconds_left() == 0:
            for worker in running:
                worker.killed_in = state_of(worker.process.pid)
            _kill(running)
            watch.kill_at = math.inf


def _forward(number: int, running: Sequence[_Worker], watch: _Watch) -> None:
    if number == signal.SIGINT and number in watch.forwarded:
        watch.killed = True
        _kill(running)
        return
    watch.forwarded.add(number)
    for worker in running:
        worker.process.send_signal(number)


def _is_fault(code: int, watch: _Watch) -> bool:
    """Whether a worker that ended with this return code (-n: by signal n) did so on its own account."""
    by_us = {*watch.forwarded}  # it had not come to setting its handlers
    if watch.kill_at is not None:
        by_us.add(signal.SIGTERM)
    if watch.killed or watch.kill_at == math.inf:
        by_us.add(signal.SIGKILL)
    return code not in (0, EXIT_REQUEUE) and -code not in by_us


def _kill(workers: Iterable[_Worker]) -> None:
    """End those that run, and what they have started."""
    for worker in workers:
        if worker.process.poll() is None:
            os.killpg(worker.process.pid, signal.SIGKILL)


def _keep_logs(workers: Iterable[_Worker], log_dir: Path) -> None:
    """Add the logs of this start that lie on the node's own disk to those of the run."""
    for worker in workers:
        if worker.log is None or worker.log.parent == log_dir:
            continue
        try:
            log_dir.mkdir(parents=True, exist_ok=True)
            with worker.log.open("rb") as own, (log_dir / worker.log.name).open("ab") as kept:
                log_start = kept.tell()
                shutil.copyfileobj(own, kept)
        except OSError as error:
            (worker.log.parent / _UNPLACED).touch()
            sys.stderr.write(f"{log_dir} cannot be written: {error.strerror}; {worker.log} stays\n")
        else:
            worker.log, worker.log_start = log_dir / worker.log.name, log_start


def _endings(workers: Iterable[_Worker], folder: Path) -> list[Ending]:
    told = faults.read(folder)
    return [
        Ending(
            rank=worker.rank,
            pid=worker.process.pid,
            code=worker.process.returncode,
            seen=worker.seen,
            killed_in=worker.killed_in,
            fault=told.get(worker.rank),
            crash=faults.read_crash(folder, worker.rank),
            log=worker.log,
            log_start=worker.log_start,
        )
        for worker in workers
    ]


def _report(endings: Sequence[Ending], watch: _Watch, nnodes: int, ooms: int) -> int:
    """Say whose fault came first, and give its exit code."""
    ranks = {worker.rank for worker in watch.failed}
    failed = [ending for ending in endings if ending.rank in ranks]
    if any(ending.rank == 0 and ending.code == EXIT_USER_ERROR and ending.fault is None for ending in failed):
        return EXIT_USER_ERROR  # rank 0 has said itself what is wrong, on the terminal
    first = first_fault(failed)
    if sys.stderr.isatty():
        sys.stderr.write("\x1b[?25h\n")  # rank 0's live line had hidden the cursor
    sys.stderr.write(obituary(first, failed, endings, nnodes, ooms))
    return first.exit_code


def _exit_code(endings: Sequence[Ending], watch: _Watch) -> int:
    """Where nobody failed by itself."""
    if watch.killed:
        return 128 + signal.SIGINT
    codes = {ending.exit_code for ending in endings}
    if codes & {EXIT_REQUEUE, 128 + signal.SIGTERM, 128 + signal.SIGUSR1}:
        return EXIT_REQUEUE
    return max(codes)  # 0, or 130 where SIGINT came before there was a handler
