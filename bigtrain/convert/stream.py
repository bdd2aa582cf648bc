"""Work on tensors, several at a time, within a bound of memory."""

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

Unit = TypeVar("Unit")
THREADS = min(4, os.cpu_count() or 1)
"""Reading, checksums, copies and writing all leave Python's lock alone."""


def fresh(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Memory for a tensor. It is numpy's, which asks the kernel for large pages, where torch does not: to be given
    small ones takes longer than to copy what they are for."""
    count = torch.Size(shape).numel()
    return torch.from_numpy(np.empty(count * dtype.itemsize, np.uint8)).view(dtype).view(*shape)


class Room:
    """So many bytes, given to whoever asks first; one that asks for more than all gets all."""

    def __init__(self, total: int) -> None:
        self._total = self._free = total
        self._changed = threading.Condition()

    def take(self, count: int) -> int:
        count = min(count, self._total)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= count)
            self._free -= count
        return count

    def give_back(self, count: int) -> None:
        with self._changed:
            self._free += count
            self._changed.notify_all()


def stream(units: Iterable[tuple[int, Unit]], work: Callable[[Unit], None], threads: int = THREADS) -> None:
    """Do `work` on every unit, those that together take no more memory than the largest alone at the same time.

    Args:
        units: Bytes that the work on it holds, and the unit.
        work: May raise; what is begun then ends and the rest is not begun.
        threads: How many at a time, at most.
    """
    listed = sorted(units, key=lambda pair: -pair[0])  # the largest first, and the small ones fill the end
    room = Room(max((size for size, _ in listed), default=0))
    stop = threading.Event()

    def one(size: int, unit: Unit) -> None:
        if stop.is_set():
            return
        taken = room.take(size)
        try:
            if not stop.is_set():
                work(unit)
        except BaseException:
            stop.set()
            raise
        finally:
            room.give_back(taken)

    with ThreadPoolExecutor(threads, "convert") as pool:
        tasks = [pool.submit(one, size, unit) for size, unit in listed]
        done, _ = wait(tasks, return_when=FIRST_EXCEPTION)
        for task in done:
            task.result()
