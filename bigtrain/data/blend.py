"""Which source a position of a mixture reads: computed, not stored, and exact to within one sample everywhere.

With shares w_i, after p samples source i has given x_i(p) of them, and |x_i(p) - w_i p| < 1 for every i and p. That
such an order exists is Tijdeman's theorem on the chairman assignment problem (Discrete Mathematics 32, 1980). It is
found by taking sample k of source i to be due between two times, not before slot floor((k-1)/w_i) + 1 and not after
slot ceil(k/w_i), and giving every slot to the sample that is due first of those that may come ("earliest deadline
first", which meets all deadlines wherever that can be done).

That rule alone has a long memory: slot p follows from all slots before. So the slots are cut into blocks, and the
counts at a border are made from its surroundings alone. Go back to the slot s before which none of the samples that
straddle the border could come; give those that straddle s to the earliest deadlines; and follow the rule from there to
the border. The counts found can be reached from any earlier such border and be gone on from (Hall's condition: between
any two slots no more samples must come than there are slots), so that the rule fills each block between its two
borders. Going back costs no more than 1 / min w_i slots.
"""

import functools
import heapq
from collections.abc import Sequence
from fractions import Fraction
from math import lcm
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

SMALLEST_SHARE = Fraction(1, 100_000)
"""Below it, going back would take longer than a second."""
_LEAST_BLOCK = 4096


class Blend:
    """Source numbers by position, for shares that are fixed.

    Args:
        shares: Of each source, not negative, summing to 1; one that is not 0 is at least `SMALLEST_SHARE`.
    """

    def __init__(self, shares: Sequence[Fraction]) -> None:
        assert sum(shares) == 1
        assert all(share == 0 or share >= SMALLEST_SHARE for share in shares)
        self.shares = tuple(shares)
        self._denominator = lcm(*(share.denominator for share in shares))
        self._numerators = [int(share * self._denominator) for share in shares]
        self._active = [source for source, share in enumerate(shares) if share]
        smallest = min(shares[source] for source in self._active)
        self._block_size = max(_LEAST_BLOCK, 4 * int(1 / smallest))
        self._border = functools.lru_cache(maxsize=16)(self._find_border)
        self._block = functools.lru_cache(maxsize=8)(self._find_block)

    def __reduce__(self) -> tuple[Any, ...]:
        """For the other ranks, without what is kept of the order."""
        return Blend, (self.shares,)

    def counts(self, position: int) -> list[int]:
        """Samples of each source at the positions below `position`."""
        block, rest = divmod(position, self._block_size)
        found = np.array(self._border(block))
        if rest:
            found += np.bincount(self._block(block)[0][:rest], minlength=len(self.shares))
        return found.tolist()

    def locate(self, positions: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """(source, number of the sample in that source) at `positions` [n]: int64 [n] each."""
        given = np.asarray(positions, dtype=np.int64)
        blocks = given // self._block_size
        sources, numbers = np.empty_like(given), np.empty_like(given)
        for block in set(blocks.tolist()):
            here = blocks == block
            within = given[here] - block * self._block_size
            found, before = self._block(block)
            sources[here] = found[within]
            numbers[here] = before[within]
        return sources, numbers

    def _find_block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Of each slot of a block its source, and how many samples of that source came before."""
        begin, end = block * self._block_size, (block + 1) * self._block_size
        sources = self._run(self._border(block), begin, end, self._border(block + 1))
        before = np.empty_like(sources)
        for source, count in enumerate(self._border(block)):
            here = sources == source
            before[here] = count + np.arange(here.sum())
        return sources, before

    def _find_border(self, block: int) -> list[int]:
        """The counts at the first slot of a block."""
        border = block * self._block_size
        straddling = [i for i in self._active if border * self._numerators[i] % self._denominator]
        if not straddling:
            return self._rounded(border)
        origin = min(self._release(i, border * self._numerators[i] // self._denominator + 1) for i in straddling) - 1
        counts = self._rounded(origin)
        passed = np.bincount(self._run(counts, origin, border), minlength=len(self.shares))
        return [count + int(more) for count, more in zip(counts, passed, strict=True)]

    def _rounded(self, slot: int) -> list[int]:
        """Counts that can be gone on from: shares rounded down, and up for those whose next sample is due first."""
        counts = [slot * numerator // self._denominator for numerator in self._numerators]
        straddling = [i for i in self._active if slot * self._numerators[i] % self._denominator]
        straddling.sort(key=lambda i: (self._deadline(i, counts[i] + 1), i))
        for source in straddling[: slot - sum(counts)]:
            counts[source] += 1
        return counts

    def _run(self, counts: Sequence[int], begin: int, end: int, last: Sequence[int] | None = None) -> np.ndarray:
        """The sources of slots `begin` … `end` - 1 (numbered from 0), earliest deadline first, after `counts`;
        `last` are the counts to end with."""
        numbers = list(counts)
        waiting = [(self._release(i, numbers[i] + 1), i) for i in self._active if last is None or numbers[i] < last[i]]
        heapq.heapify(waiting)
        ready: list[tuple[int, int]] = []
        sources = np.empty(end - begin, dtype=np.int64)
        for slot in range(begin + 1, end + 1):
            while waiting and waiting[0][0] <= slot:
                _, source = heapq.heappop(waiting)
                deadline = self._deadline(source, numbers[source] + 1)
                heapq.heappush(ready, (deadline if last is None else min(deadline, end), source))
            deadline, source = heapq.heappop(ready)
            assert deadline >= slot, "there is an order that meets all deadlines"
            sources[slot - begin - 1] = source
            numbers[source] += 1
            if last is None or numbers[source] < last[source]:
                heapq.heappush(waiting, (self._release(source, numbers[source] + 1), source))
        return sources

    def _release(self, source: int, number: int) -> int:
        """The first slot, from 1, in which sample `number`, from 1, of a source may come."""
        return (number - 1) * self._denominator // self._numerators[source] + 1

    def _deadline(self, source: int, number: int) -> int:
        """The last one."""
        return -(-number * self._denominator // self._numerators[source])
