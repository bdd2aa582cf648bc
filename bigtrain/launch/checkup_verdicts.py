"""From what nodes answered to what is to be done: what is wrong with which node, and what with all."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import median
from typing import Literal

from bigtrain.launch.checkup_answer import Answer

Kind = Literal["ok", "note", "slow", "bad"]

CLOCK_SECONDS = 1.0
"""Clocks may differ by so much."""
_SLOW_NETWORK, _SLOW_DISK = 1 / 2, 1 / 4
"""Shares of the median below which a node is called slow. Disks are shared, and vary more."""
_USERS = ("Python environment", "run's folder", "data")
"""What does not mend itself, and is as it is on the nodes of the next start."""


@dataclass(frozen=True)
class Verdict:
    """What was looked at, on one node."""

    node: str
    what: str
    kind: Kind
    """`note`: to know; `slow`: it works, and holds the others up; `bad`: the run would fail."""
    found: str


@dataclass(frozen=True)
class Row:
    """The same verdict on several nodes."""

    what: str
    nodes: list[str]
    kind: Kind
    found: str


@dataclass(frozen=True)
class Report:
    """What a checkup found."""

    nodes: list[str]
    verdicts: list[Verdict]
    seconds: float
    """How long it took."""

    @property
    def ok(self) -> bool:
        """Whether a run can start on these nodes. It can on slow ones."""
        return all(verdict.kind != "bad" for verdict in self.verdicts)

    @property
    def bad_nodes(self) -> list[str]:
        """Nodes without which the others could start: those with a fault of their own, not one that most have."""
        own = {verdict.node for verdict in self.verdicts if verdict.kind == "bad" and not self._is_common(verdict.what)}
        return [node for node in self.nodes if node in own]

    @property
    def is_users(self) -> bool:
        """Whether something is bad that the user, or the site, has to mend: to start again would not."""
        return any(verdict.kind == "bad" and verdict.what in _USERS for verdict in self.verdicts)

    @property
    def slow_nodes(self) -> list[str]:
        """Nodes that work, but far slower than most."""
        slow = {verdict.node for verdict in self.verdicts if verdict.kind == "slow"}
        return [node for node in self.nodes if node in slow and node not in self.bad_nodes]

    def rows(self) -> list[Row]:
        """All verdicts, those that several nodes share in one; of each thing looked at the worst first."""
        order = {kind: place for place, kind in enumerate(("bad", "slow", "note", "ok"))}
        places = {verdict.what: place for place, verdict in reversed(list(enumerate(self.verdicts)))}

        def key(verdict: Verdict) -> tuple[int, int, str]:
            return places[verdict.what], order[verdict.kind], verdict.found

        groups = (list(group) for _, group in groupby(sorted(self.verdicts, key=key), key))
        return [Row(group[0].what, [one.node for one in group], group[0].kind, group[0].found) for group in groups]

    def text(self) -> str:
        """What is wrong, in a line each, and what to do."""
        lines = [f"{len(self.nodes)} node{'s' * (len(self.nodes) > 1)} checked in {self.seconds:.0f} s: {self._sum()}"]
        lines += [f"  {self.named(row.nodes)}: {row.what}: {row.found}" for row in self.rows() if row.kind != "ok"]
        return "\n".join([*lines, *self.advice()])

    def named(self, nodes: Sequence[str]) -> str:
        """Those of the nodes, in words."""
        return f"all {len(nodes)} nodes" if len(nodes) == len(self.nodes) > 1 else ", ".join(nodes)

    def advice(self) -> list[str]:
        """What to do; empty: nothing."""
        lines = []
        common = sorted({one.what for one in self.verdicts if one.kind == "bad" and self._is_common(one.what)})
        if common:
            lines.append(f"no fault of single nodes, and to be mended for all: {', '.join(common)}")
        if bad := self.bad_nodes:
            lines.append(f"to start without {self.named(bad)}: {_options(bad)}")
        elif slow := self.slow_nodes:
            lines.append(f"to start without the slow {self.named(slow)}: {_options(slow)}")
        return lines

    def _sum(self) -> str:
        if self.bad_nodes:
            return f"{self.named(self.bad_nodes)} not fit"
        if not self.ok:
            return "no run can start"
        return f"all fit, {self.named(self.slow_nodes)} slow" if self.slow_nodes else "all fit"

    def _is_common(self, what: str) -> bool:
        """Whether so many nodes have this fault that it is not theirs: then leaving them out would not help."""
        count = len({one.node for one in self.verdicts if one.kind == "bad" and one.what == what})
        total = len(self.nodes)
        if what == "GPU health":
            return False
        if what == "answer":
            return count == total
        if what == "run's folder":  # the node that wrote the marker sees it, shared or not
            return count >= max(1, total - 1)
        return 2 * count > total or total == 1


def judge(
    nodes: Sequence[str],
    answers: Mapping[str, Answer],
    silent: Mapping[str, str],
    *,
    checkpoint_bytes: int,
    checkpoints: int,
    wants_gpus: bool,
    seconds: float,
) -> Report:
    """Join what the nodes found.

    Args:
        nodes: All of them, in Slurm's order.
        answers: What those found that answered, by name.
        silent: Why others did not; those in neither were never asked.
        checkpoint_bytes: What one takes.
        checkpoints: How many more there must be room for.
        wants_gpus: Whether the configuration says that the run computes on GPUs.
        seconds: How long it took.
    """
    given = [answers[node] for node in nodes if node in answers]
    silent_nodes = [node for node in nodes if node not in answers]
    verdicts = [_silent(node, silent) for node in silent_nodes]
    verdicts += [_answered(answer, bool(silent_nodes)) for answer in given]
    checks: list[Callable[[], Iterable[Verdict]]] = [
        lambda: _slurm(given, len(nodes)),
        lambda: _gpus(given, wants_gpus),
        lambda: _gpu_health(given),
        lambda: _environment(given),
        lambda: _folder(given),
        lambda: _room(given, checkpoint_bytes, checkpoints),
        lambda: _data(given),
        lambda: _clocks(given),
        lambda: _network(given, nodes),
    ]
    return Report(list(nodes), [*verdicts, *(verdict for check in checks for verdict in check())], seconds)


def _options(nodes: Sequence[str]) -> str:
    names = ",".join(nodes)
    return f"sbatch --exclude={names}, or launch.exclude={names}"


def _silent(node: str, silent: Mapping[str, str]) -> Verdict:
    if node in silent:
        return Verdict(node, "answer", "bad", silent[node])
    return Verdict(node, "answer", "note", "not asked: Slurm gives up where one node cannot be reached")


def _answered(answer: Answer, others_silent: bool) -> Verdict:
    if answer.fault:
        return Verdict(answer.name, "answer", "bad", f"failed while {answer.fault}")
    if answer.doing:
        waiting = others_silent and answer.doing.startswith("waiting")
        return Verdict(answer.name, "answer", "note" if waiting else "bad", f"time was over while {answer.doing}")
    return Verdict(answer.name, "answer", "ok", "in time")


def _slurm(answers: Sequence[Answer], count: int) -> Iterable[Verdict]:
    for answer in answers:
        kind: Kind = "ok" if answer.nodes == count else "bad"
        found = f"{answer.nodes} nodes, by the variables of its step"
        yield Verdict(answer.name, "Slurm", kind, found if kind == "ok" else f"{found}; the job has {count}")


def _gpus(answers: Sequence[Answer], wanted: bool) -> Iterable[Verdict]:
    for answer in answers:
        slurm, torch = answer.slurm_gpus, answer.torch_gpus
        if slurm == torch:
            yield Verdict(
                answer.name, "GPUs", "ok", f"{torch}, as Slurm says" if torch else "none: computing on the CPU"
            )
        elif answer.cuda_build or wanted:
            build = "" if answer.cuda_build else ", being a CPU build or told so by DS_ACCELERATOR"
            yield Verdict(answer.name, "GPUs", "bad", f"Slurm gives {slurm}, torch sees {torch}{build}")
        else:
            yield Verdict(answer.name, "GPUs", "note", f"Slurm gives {slurm}, and this torch computes on the CPU")


def _gpu_health(answers: Sequence[Answer]) -> Iterable[Verdict]:
    for answer in answers:
        if answer.gpu_faults:
            yield Verdict(answer.name, "GPU health", "bad", "; ".join(answer.gpu_faults))
        elif answer.gpu_throttled:
            yield Verdict(answer.name, "GPU health", "slow", f"held back: {'; '.join(answer.gpu_throttled)}")
        elif "NVIDIA driver" in answer.environment:
            yield Verdict(answer.name, "GPU health", "ok", "no uncorrected memory errors, not held back")


def _environment(answers: Sequence[Answer]) -> Iterable[Verdict]:
    """Of each thing the version that most nodes have is right; of two as frequent, that of the first node."""
    things = dict.fromkeys(thing for answer in answers for thing in answer.environment)
    usual = {
        thing: Counter(answer.environment.get(thing, "not found") for answer in answers).most_common(1)[0][0]
        for thing in things
    }
    alike = f"bigtrain {usual.get('bigtrain')}, torch {usual.get('torch')}, python {usual.get('python')}, and others"
    for answer in answers:
        odd = [
            f"{thing} {found}, elsewhere {usual[thing]}"
            for thing in things
            if (found := answer.environment.get(thing, "not found")) != usual[thing] and answer.environment
        ]
        yield Verdict(answer.name, "Python environment", "bad" if odd else "ok", "; ".join(odd) or alike)


def _folder(answers: Sequence[Answer]) -> Iterable[Verdict]:
    what = "run's folder"
    tried = [answer for answer in answers if answer.sees_marker is not None or answer.folder_error]
    speeds = {answer.name: answer.written for answer in tried if answer.sees_marker and not answer.folder_error}
    usual = median(speeds.values()) if speeds else 0.0
    span = _span([speed for speed in speeds.values() if speed >= usual * _SLOW_DISK])
    for answer in tried:
        if answer.folder_error:
            yield Verdict(answer.name, what, "bad", f"training.output_dir {answer.folder_error}")
        elif not answer.sees_marker:
            told = "training.output_dir is another folder here than where the job's first process runs: not shared"
            yield Verdict(answer.name, what, "bad", told)
        elif answer.written < usual * _SLOW_DISK:
            found = f"writes {_speed(answer.written)} to it, others {_speed(usual)} in the median"
            yield Verdict(answer.name, what, "slow", found)
        else:
            yield Verdict(answer.name, what, "ok", f"shared, written at {span}")


def _room(answers: Sequence[Answer], one: int, count: int) -> Iterable[Verdict]:
    known = [answer for answer in answers if answer.free >= 0]
    least = min((answer.free for answer in known), default=0)
    for answer in known:
        kind: Kind = "bad" if answer.free < one else "note" if answer.free < one * count else "ok"
        free = least if kind == "ok" else answer.free
        found = f"{_bytes(free)} free, {_bytes(one * count)} for {count} checkpoint{'s' * (count > 1)} more"
        yield Verdict(answer.name, "disk space", kind, found)


def _data(answers: Sequence[Answer]) -> Iterable[Verdict]:
    for answer in answers:
        bad = "; ".join(answer.data_errors)
        yield Verdict(answer.name, "data", "bad" if bad else "ok", bad or "all shards are there")


def _clocks(answers: Sequence[Answer]) -> Iterable[Verdict]:
    told = [answer for answer in answers if answer.network.clock and not answer.network.unreachable]
    usual = median(answer.network.clock for answer in told) if told else 0.0
    for answer in told:
        apart = answer.network.clock - usual
        if abs(apart) > CLOCK_SECONDS:
            side = "ahead of" if apart > 0 else "behind"
            yield Verdict(answer.name, "clock", "note", f"{abs(apart):.1f} s {side} the others'")
        else:
            yield Verdict(answer.name, "clock", "ok", f"within {CLOCK_SECONDS:g} s")


def _network(answers: Sequence[Answer], nodes: Sequence[str]) -> Iterable[Verdict]:
    if len(nodes) == 1:
        return
    guilty = _guilty({answer.name: answer for answer in answers}, nodes)
    speeds = {answer.name: answer.network.best for answer in answers if answer.network.met}
    usual = median(speeds.values()) if speeds else 0.0
    fast = [speed for speed in speeds.values() if speed >= usual * _SLOW_NETWORK]
    together = [answer.network.all_reduce for answer in answers if answer.network.all_reduce]
    at_once = f"{_span(together)} in an all-reduce" if together else "no all-reduce, as not all pairs have met"
    for answer in answers:
        network = answer.network
        if answer.name in guilty:
            yield Verdict(answer.name, "network", "bad", guilty[answer.name])
        elif network.unreachable or network.failed or network.lost:
            why = network.unreachable or network.lost or "could not talk to all, for no fault of its own"
            yield Verdict(answer.name, "network", "note", why)
        elif network.met and network.best < usual * _SLOW_NETWORK:
            found = f"{_speed(network.best)} with its best partner, others {_speed(usual)} in the median"
            yield Verdict(answer.name, "network", "slow", found)
        elif network.met:
            by = "GPU to GPU" if network.device == "cuda" else "by TCP"
            found = f"{_span(fast)} between pairs {by}, {at_once}"
            if network.skipped:
                found += f"; no time for {network.skipped} of the others"
            yield Verdict(answer.name, "network", "ok", found)


def _guilty(answers: Mapping[str, Answer], nodes: Sequence[str]) -> dict[str, str]:
    """The nodes that must go for all others to talk to one another, and why."""
    names = dict(enumerate(nodes)) | {answer.rank: name for name, answer in answers.items()}
    cut_off = {name: answer.network.unreachable for name, answer in answers.items() if answer.network.unreachable}
    others = answers.keys() - {names[0]}
    first = answers.get(names[0])
    came = first is not None and first.network.clock > 0
    if others and cut_off.keys() == others and (len(others) > 1 or not came):
        return {names[0]: "no other node reaches it"}
    found = {name: f"cannot meet the others: {why}" for name, why in cut_off.items()}
    pairs: dict[frozenset[str], str] = {}
    for name, answer in answers.items():
        for rank, why in answer.network.failed.items():
            pairs.setdefault(frozenset((name, names[rank])), why)
    pairs = {pair: why for pair, why in pairs.items() if not pair & found.keys()}
    while pairs:
        count = Counter(name for pair in pairs for name in pair)
        worst = max(count, key=lambda name: (count[name], nodes.index(name)))
        theirs = [pair for pair in pairs if worst in pair]
        partners = sorted({name for pair in theirs for name in pair if name != worst}, key=nodes.index)
        own = answers[worst].network.failed.values() if worst in answers else ()
        found[worst] = f"cannot talk to {', '.join(partners)} ({next(iter(own), pairs[theirs[0]])})"
        pairs = {pair: why for pair, why in pairs.items() if worst not in pair}
    return found


def _span(speeds: Sequence[float]) -> str:
    low, high = (_speed(min(speeds)), _speed(max(speeds))) if speeds else ("", "")
    return low if low == high else f"{low} to {high}"


def _speed(bytes_per_second: float) -> str:
    return f"{_bytes(bytes_per_second)}/s"


def _bytes(count: float) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.0f} MB"
