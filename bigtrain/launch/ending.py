"""How the workers of a node ended: whose fault came first, and what to say of it."""

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bigtrain.errors import EXIT_USER_ERROR
from bigtrain.training.faults import Fault, Kind

TAIL_LINES = 40
_VMSTAT = Path("/proc/vmstat")


@dataclass(frozen=True)
class Ending:
    """How one worker ended, seen from outside and told by itself."""

    rank: int
    pid: int
    code: int
    """Exit code; -n after signal n."""
    seen: float
    """When the launcher saw it, in seconds since 1970."""
    killed_in: str
    """Its state (the letter in /proc/PID/stat) when the launcher killed it; empty: it did not."""
    fault: Fault | None
    """What it put down itself."""
    crash: str
    """The stack of a crash in C, where it is not in the log."""
    log: Path | None
    """Where its output went; None: to the launcher's own."""
    log_start: int
    """Bytes that were in the log before this start."""

    @property
    def kind(self) -> Kind:
        if self.fault is not None:
            return self.fault.kind
        return "mistake" if self.code == EXIT_USER_ERROR else "fault"

    @property
    def exit_code(self) -> int:
        """As a shell gives it: 128 + n after signal n."""
        return self.code if self.code >= 0 else 128 - self.code


def first_fault(failed: Sequence[Ending]) -> Ending:
    """The one that made the others fail: a user's mistake, else the earliest that is no mere loss of a peer."""

    def order(ending: Ending) -> tuple[bool, bool, float]:
        met_at = ending.fault.time if ending.fault is not None else ending.seen
        return ending.kind != "mistake", ending.kind == "lost peer", met_at

    return min(failed, key=order)


def obituary(first: Ending, failed: Sequence[Ending], all_of_node: Sequence[Ending], nnodes: int, ooms: int) -> str:
    """What the launcher says at its end, the cause in the last lines.

    Args:
        first: The worker whose fault came first.
        failed: All that failed by themselves.
        all_of_node: All workers of this node, those that had to be killed as well.
        nnodes: Nodes of the run.
        ooms: Processes that the kernel has killed on this node since the start for lack of memory.
    """
    before = []
    if first.kind == "fault":
        as_well = [ending for ending in failed if ending is not first and ending.kind == "fault"]
        before = [f"rank {ending.rank} failed as well: {_in_a_line(ending, ooms)}" for ending in as_well]
    if first.kind == "hang":
        lines = _hang(all_of_node)
    elif first.fault is None:
        lines = _unrecorded(first, ooms)
    elif first.kind == "mistake":
        lines = [first.fault.text.rstrip()]
    elif first.kind == "lost peer":
        lines = _lost(first, first.fault, nnodes)
    else:
        lines = [f"rank {first.rank} (pid {first.pid}) failed{_its_log(first)}:", first.fault.text.rstrip()]
    return "\n".join([*before, *lines]) + "\n"


def _in_a_line(ending: Ending, ooms: int) -> str:
    return ending.fault.text.rstrip().splitlines()[-1] if ending.fault is not None else _how(ending, ooms)


def _its_log(ending: Ending) -> str:
    return f"; its log is {ending.log}" if ending.log is not None else ""


def _unrecorded(ending: Ending, ooms: int) -> list[str]:
    """A worker that left no word, as when it was killed: how it went, and the last it said."""
    told = f"rank {ending.rank} (pid {ending.pid}) ended {_how(ending, ooms)}"
    if ending.log is None:
        return [told, *ending.crash.splitlines()]
    return [f"{told}; the end of {ending.log}:", *_tail(ending.log, ending.log_start)]


def _how(ending: Ending, ooms: int) -> str:
    if ending.code >= 0:
        return f"with exit code {ending.code}"
    how = f"by signal {-ending.code} ({_signal_name(-ending.code)})"
    if ending.code != -signal.SIGKILL:
        return how
    if ooms:
        return f"{how}: the kernel ran out of memory and killed it"
    return f"{how}, sent from outside: the kernel counts none here that it killed for lack of memory"


def _lost(ending: Ending, fault: Fault, nnodes: int) -> list[str]:
    told = f"rank {ending.rank} (pid {ending.pid}) lost its peers"
    if nnodes == 1:
        return [f"{told}{_its_log(ending)}:", fault.text.rstrip()]
    told += "; no rank of this node failed before, so look at what the other nodes say"
    if ending.log is None:  # rank 0: its words are nowhere else
        return [f"{told}:", fault.text.rstrip()]
    return [f"{told}{_its_log(ending)}:", fault.text.rstrip().splitlines()[-1]]


def _hang(endings: Sequence[Ending]) -> list[str]:
    """Where every rank was."""
    folders = {str(ending.log.parent) for ending in endings if ending.log is not None}
    stacks = f" (the stacks of all threads are at the end of {min(folders)}/rank-*.log)" if folders else ""
    lines = [f"training.step_timeout: the run hangs{stacks}; where the ranks are:"]
    return lines + [f"rank {ending.rank} (pid {ending.pid}): {_whereabouts(ending)}" for ending in endings]


def _whereabouts(ending: Ending) -> str:
    if ending.fault is not None:
        return ending.fault.text.rstrip().splitlines()[-1]
    if ending.killed_in in ("T", "t"):
        return "did not answer: it is stopped, by SIGSTOP or a debugger"
    if ending.killed_in == "D":
        return "did not answer: the kernel has it wait for a disk, a network file system or a driver"
    if ending.code == 1:
        return "did not answer, its Python being locked by C code; its stack is in its log"
    return "did not answer"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return "no name"


def _tail(log: Path, start: int) -> list[str]:
    """The last lines that were written after byte `start`."""
    with log.open("rb") as file:
        file.seek(max(start, log.stat().st_size - 64 * 1024))
        return file.read().decode(errors="replace").splitlines()[-TAIL_LINES:]


def oom_kills() -> int:
    """How many processes this node's kernel has killed for lack of memory since it started."""
    counters = _VMSTAT.read_text() if _VMSTAT.exists() else ""
    counted = re.search(r"^oom_kill (\d+)$", counters, re.MULTILINE)
    return int(counted[1]) if counted else 0


def state_of(pid: int) -> str:
    """The letter in /proc/PID/stat: R running, S waiting, T stopped, D in the kernel; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""
