"""Who can talk to whom, and how fast: all pairs of nodes, as many at once as there are, then all together.

A process group of all nodes cannot be made if one pair of them does not connect, and does not say which. So every pair
makes a group of its own, over a store that all have reached, in rounds in which each node has one partner: N - 1 rounds
for N nodes. All wait for the end of a round before the next: the time that a pair loses is lost to no other pair.
"""

import json
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from bigtrain.launch.checkup_answer import Network
from bigtrain.launch.environment import World

_BYTES = {"cpu": 2**24, "cuda": 2**28}
_PAIR_SECONDS = {"cpu": 5.0, "cuda": 20.0}
_TRIES = 2
_GIVE_UP = 3
"""Partners that a node fails to meet, having met none, before it stands aside: each costs all others a wait."""
_LEAVE_SECONDS = 5.0
_LAST_WORD_SECONDS = 2.0
"""Left to say that the others were waited for in vain."""


def meet(
    world: World,
    deadline: float,
    network: Network,
    *,
    use_gpu: bool = False,
    at: Callable[[str], None] = lambda _: None,
) -> None:
    """Meet all other nodes, and put down in `network` how it went.

    Args:
        world: One process a node.
        deadline: On the monotonic clock. Nodes that come when half of the time is over are not waited for.
        network: Filled as the node goes along.
        use_gpu: Whether this node has a GPU; all need one, else all use the CPU.
        at: Told what the node is doing.
    """
    network.clock = time.time()
    if world.nnodes == 1:
        return
    patience = max(1.0, (deadline - time.monotonic()) / 2)
    at(f"connecting to {world.master_address}:{world.master_port}")
    try:
        store = _store(world, patience)
    except RuntimeError as error:  # torch's own errors are of this kind
        network.unreachable = f"{world.master_address}:{world.master_port}: {_first_line(error)}"
        return
    try:
        at("waiting for the other nodes")
        ranks, network.device = _arrive(store, world, patience, use_gpu)
        if world.node_rank not in ranks:
            network.unreachable = "came when the others had begun"
            return
        _tournament(store, world.node_rank, ranks, deadline, network, at)
        _leave(store, world.node_rank, len(ranks))
    except RuntimeError as error:
        network.lost = _first_line(error)


def partner(place: int, number: int, count: int) -> int | None:
    """Whom the player at `place` of `count` meets in round `number`; None: nobody. In `rounds(count)` all meet all."""
    even = count + count % 2
    last = even - 1
    if place == last:
        other = number * (even // 2) % last  # where twice the place is the round's number
    else:
        other = (number - place) % last
        if other == place:
            other = last
    return other if other < count else None


def rounds(count: int) -> int:
    """In which `count` players all meet all."""
    return count - 1 + count % 2


def _store(world: World, patience: float) -> dist.TCPStore:
    limit = timedelta(seconds=patience)
    port = world.master_port or 0
    return dist.TCPStore(world.master_address, port, None, world.node_rank == 0, limit, wait_for_workers=False)


def _arrive(store: dist.Store, world: World, patience: float, use_gpu: bool) -> tuple[list[int], str]:
    """Who has come in time, and which device all have."""
    store.set(f"here/{world.node_rank}", "cuda" if use_gpu else "cpu")
    store.add("arrived", 1)
    if world.node_rank == 0:
        until = time.monotonic() + patience
        while store.add("arrived", 0) < world.nnodes and time.monotonic() < until:
            time.sleep(0.02)
        ranks = [rank for rank in range(world.nnodes) if store.check([f"here/{rank}"])]
        devices = {store.get(f"here/{rank}").decode() for rank in ranks}
        store.set("roster", json.dumps([ranks, "cuda" if devices == {"cuda"} else "cpu"]))
    store.wait(["roster"], timedelta(seconds=patience + _LEAVE_SECONDS))
    ranks, device = json.loads(store.get("roster"))
    return ranks, device


def _tournament(
    store: dist.Store, rank: int, ranks: list[int], deadline: float, network: Network, at: Callable[[str], None]
) -> None:
    """All rounds that there is time for, and at the end all at once, where every pair has met."""
    place, count = ranks.index(rank), len(ranks)
    until = deadline - min(2 * _PAIR_SECONDS[network.device], (deadline - time.monotonic()) / 4)
    at("waiting for the first round")
    for number in range(rounds(count)):
        if not _all_ready(store, f"round-{number}", count, until, deadline):
            network.skipped = rounds(count) - number
            return
        if number == 0:
            network.clock = time.time()
        other = partner(place, number, count)
        if other is None or store.check([f"aside/{ranks[other]}"]) or store.check([f"aside/{rank}"]):
            continue
        at(f"exchanging numbers with node {ranks[other]}")
        _meet_one(store, rank, ranks[other], network)
        at(f"waiting for the others to end round {number + 1} of {rounds(count)}")
    if network.failed:
        store.set("failed", "")
    if _all_ready(store, "all", count, until, deadline) and not store.check(["failed"]):
        at("in an all-reduce of all nodes")
        with suppress(RuntimeError):  # it is said where there is no figure
            seconds = _exchange(dist.PrefixStore("all/", store), place, count, network.device)
            network.all_reduce = 2 * (count - 1) / count * _BYTES[network.device] / seconds


def _meet_one(store: dist.Store, rank: int, other: int, network: Network) -> None:
    low, high = min(rank, other), max(rank, other)
    try:
        seconds = _exchange(dist.PrefixStore(f"pair/{low}-{high}/", store), int(rank == high), 2, network.device)
    except RuntimeError as error:
        network.failed[other] = _first_line(error)
        if len(network.failed) == _GIVE_UP and not network.met:
            store.set(f"aside/{rank}", "")
        return
    network.met += 1
    network.best = max(network.best, _BYTES[network.device] / seconds)


def _exchange(store: dist.Store, rank: int, size: int, device: str) -> float:
    """Seconds of an all-reduce, the best of some: between two it is an exchange, and NCCL has no order to mind."""
    group = _group(store, rank, size, device)
    group.allreduce(torch.ones(1, device=device)).wait()  # connects
    tensor = torch.ones(_BYTES[device] // 4, device=device)
    return min(_timed(group, tensor) for _ in range(_TRIES))


def _timed(group: Any, tensor: torch.Tensor) -> float:
    if tensor.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    group.allreduce(tensor).wait()
    if tensor.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _group(store: dist.Store, rank: int, size: int, device: str) -> Any:
    limit = timedelta(seconds=_PAIR_SECONDS[device])
    if device == "cpu":
        return dist.ProcessGroupGloo(store, rank, size, limit)
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = limit
    return dist.ProcessGroupNCCL(store, rank, size, options)


def _all_ready(store: dist.Store, key: str, count: int, until: float, deadline: float) -> bool:
    """Wait until all are here; False: time is over, by the clock of the last to come."""
    if store.add(key, 1) == count:
        store.set(f"{key}/go", "yes" if time.monotonic() < until else "no")
    store.wait([f"{key}/go"], timedelta(seconds=max(1.0, deadline - time.monotonic() - _LAST_WORD_SECONDS)))
    return store.get(f"{key}/go") == b"yes"


def _leave(store: dist.Store, rank: int, count: int) -> None:
    """The store is in rank 0, which goes last."""
    store.add("left", 1)
    until = time.monotonic() + _LEAVE_SECONDS
    while rank == 0 and store.add("left", 0) < count and time.monotonic() < until:
        time.sleep(0.02)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
