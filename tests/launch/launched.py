"""Real launchers over real workers: small Python programs that say when they are ready and wait for signals."""

import os
import select
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil

PATIENCE = 60.0  # seconds; only a failing test waits so long

WORKER = """
import os, signal, subprocess, sys, time
rank = int(os.environ["RANK"])

def tell(*words):
    with open(os.environ["TELL"], "w") as pipe:
        print(rank, os.getpid(), *words, file=pipe)

def wait_for(*numbers):
    '''The next of these signals, once they can be caught and the test knows it.'''
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    tell("ready")
    return signal.sigwait(numbers)

"""

INPUT = "a: 1\n" * 50_000  # more than a pipe holds

LAUNCHER = f"""
import sys
from pathlib import Path
from bigtrain.launch.environment import World
from bigtrain.launch.local import run_workers
program, log_dir, nproc, grace = sys.argv[1:]
world, log_dir = World(int(nproc)), Path(log_dir)
command, stdin = [sys.executable, program], "a: 1\\n" * {len(INPUT) // 5}
sys.exit(run_workers(command, world, log_dir=log_dir, stdin=stdin, grace_seconds=float(grace)))
"""


@dataclass
class Launcher:
    """A launcher that runs, and what its workers tell."""

    process: subprocess.Popen[str]
    pipe: int
    """Read end of the pipe that workers write to."""
    log_dir: Path
    _rest: str = ""

    def told(self, count: int) -> list[tuple[int, psutil.Process, str]]:
        """The next `count` things that workers say, which go on: rank, process, words."""
        return [(rank, psutil.Process(pid), words) for rank, pid, words in self._next(count)]

    def words(self, count: int) -> list[str]:
        """The next `count` things that workers say, by rank; they may have ended."""
        return [words for _, _, words in self._next(count)]

    def _next(self, count: int) -> list[tuple[int, int, str]]:
        while self._rest.count("\n") < count:
            ready, _, _ = select.select([self.pipe], [], [], PATIENCE)
            assert ready, f"the workers have said no more than {self._rest!r}"
            self._rest += os.read(self.pipe, 4096).decode()
        *lines, self._rest = self._rest.split("\n", count)
        split = [line.split(" ", 2) for line in lines]
        return sorted((int(rank), int(pid), words) for rank, pid, words in split)

    def ready(self, count: int) -> list[psutil.Process]:
        """The processes of the next `count` workers that say so, by rank."""
        told = self.told(count)
        assert {words for _, _, words in told} == {"ready"}
        return [process for _, process, _ in told]

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> tuple[int, str, str]:
        """Exit code, stdout, stderr."""
        out, err = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, out, err


def all_gone(processes: list[psutil.Process]) -> bool:
    """Whether these processes have ended, or do soon."""
    return not psutil.wait_procs(processes, timeout=PATIENCE)[1]
