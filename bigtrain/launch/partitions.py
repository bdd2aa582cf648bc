"""What Slurm's partitions have, and whether a job's wishes can be met there."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from bigtrain.config.launch import LaunchConfig
from bigtrain.errors import LaunchError
from bigtrain.launch import slurm


@dataclass(frozen=True)
class Nodes:
    """Nodes of one partition that are alike."""

    partition: str
    is_default: bool
    count: int
    cpus: int
    """Of each node, as are the following."""
    memory_gb: int
    gpus: int
    limit: str
    """Longest job, as Slurm writes it; `infinite`: none."""


def offered() -> list[Nodes]:
    """All nodes of all partitions, those included that are down for now.

    Raises:
        LaunchError: Slurm does not answer.
    """
    told = slurm.ask("sinfo", "--noheader", "--exact", "--format=%P|%D|%c|%m|%l|%G")
    return [_nodes(line) for line in told.splitlines() if line]


def check(launch: LaunchConfig, nodes: Sequence[Nodes]) -> None:
    """Refuse a job that no partition of those it names could ever run.

    Raises:
        LaunchError: Naming every wish that cannot be met, one a line.
    """
    problems = list(_problems(launch, nodes))
    if problems:
        raise LaunchError("\n".join(problems))


def seconds_of(text: str) -> float | None:
    """A time limit in seconds: `90` (minutes), `12:00:00`, `2-12`, `infinite`; None: it is none."""
    if text.lower() in ("infinite", "unlimited"):
        return math.inf
    if not re.fullmatch(r"\d+(-\d+(:\d+){0,2}|(:\d+){0,2})", text):
        return None
    days, dash, clock = text.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    if not dash and len(parts) < 3:
        parts.insert(0, 0)  # of one or two numbers the first are minutes
    hours, minutes, seconds = [*parts, 0, 0][:3]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def _problems(launch: LaunchConfig, nodes: Sequence[Nodes]) -> Iterator[str]:
    yield from _time_problems(launch)
    names = launch.partition.split(",") if launch.partition else [n.partition for n in nodes if n.is_default][:1]
    known = list(dict.fromkeys(n.partition for n in nodes))
    if unknown := [name for name in names if name not in known]:
        near = get_close_matches(unknown[0], known, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        yield f"launch.partition: there is no partition {unknown[0]!r} here, there are {', '.join(known)}{hint}"
        return
    here = [n for n in nodes if n.partition in names]
    if not here:
        return  # Slurm has no default partition, and will say so
    where = f"partition {' or '.join(names)}"
    lacking = list(_what_a_node_lacks(launch, here, where))
    yield from lacking
    if not lacking:
        yield from _too_few(launch, here, where)
    yield from _too_long(launch, here, where)


def _time_problems(launch: LaunchConfig) -> Iterator[str]:
    seconds = seconds_of(launch.time)
    if seconds is None:
        yield f"launch.time ({launch.time!r}) is no time limit: write hours:minutes:seconds, or days-hours"
    elif seconds <= launch.warning_seconds:
        yield (
            f"launch.warning_seconds ({launch.warning_seconds}) is not below launch.time ({launch.time}): "
            "the job would be told to end as soon as it starts"
        )


def _too_long(launch: LaunchConfig, here: Sequence[Nodes], where: str) -> Iterator[str]:
    limits = {n.limit: math.inf if (limit := seconds_of(n.limit)) is None else limit for n in here}
    longest = max(limits, key=lambda text: limits[text])
    if (seconds_of(launch.time) or 0) > limits[longest]:
        yield f"launch.time ({launch.time}) is above the limit of {where}, {longest}"


def _what_a_node_lacks(launch: LaunchConfig, here: Sequence[Nodes], where: str) -> Iterator[str]:
    for key, wanted, most in (
        ("gpus_per_node", launch.gpus_per_node, max(n.gpus for n in here)),
        ("cpus_per_node", launch.cpus_per_node or 0, max(n.cpus for n in here)),
        ("memory_gb_per_node", launch.memory_gb_per_node or 0, max(n.memory_gb for n in here)),
    ):
        if wanted > most:
            yield f"launch.{key} is {wanted}, but no node of {where} has more than {most}"


def _too_few(launch: LaunchConfig, here: Sequence[Nodes], where: str) -> Iterator[str]:
    """More nodes than one partition has of those that are large enough."""
    counts: dict[str, int] = {}
    for n in here:
        if (
            n.gpus >= launch.gpus_per_node
            and n.cpus >= (launch.cpus_per_node or 0)
            and n.memory_gb >= (launch.memory_gb_per_node or 0)
        ):
            counts[n.partition] = counts.get(n.partition, 0) + n.count
    wanted, most = launch.nodes + launch.spare_nodes, max(counts.values(), default=0)
    if wanted > most:
        asked = f"launch.nodes is {wanted}"
        if launch.spare_nodes:
            asked = f"launch.nodes ({launch.nodes}) + launch.spare_nodes ({launch.spare_nodes}) is {wanted}"
        yield f"{asked}, but {where} has {most} such node{'s' * (most != 1)}"


def _nodes(line: str) -> Nodes:
    partition, count, cpus, memory, limit, resources = line.split("|", 5)
    return Nodes(
        partition=partition.removesuffix("*"),
        is_default=partition.endswith("*"),
        count=int(count),
        cpus=int(cpus.rstrip("+")),
        memory_gb=int(memory.rstrip("+")) // 1000,  # a node of 512 GB tells a little less than 512 x 1,024
        gpus=sum(map(int, re.findall(r"(?:^|,)gpu:(?:[^:,(]+:)?(\d+)", resources))),
        limit=limit,
    )
