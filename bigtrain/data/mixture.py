"""Several datasets read as one: which source a position reads is a pure function of it, stage by stage."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike

from bigtrain.data.blend import Blend
from bigtrain.data.packing import Rows
from bigtrain.data.samples import Samples


@dataclass(frozen=True)
class Stage:
    """A stretch of the run with fixed shares."""

    first_position: int
    shares: Mapping[str, Fraction]
    """Of each source, by name; they sum to 1."""


class Mixture:
    """Named sources in the shares of stages. Has a :class:`Samples`' methods; no epoch of its own.

    A source's samples come in its own order, from stage to stage without a gap, and begin anew when it is exhausted.

    Args:
        sources: By name; all of one sequence length and one kind of token.
        stages: In order; the first begins at position 0.
    """

    def __init__(self, sources: Mapping[str, Samples], stages: Sequence[Stage]) -> None:
        self.names = list(sources)
        self.stages = list(stages)
        self._sources = list(sources.values())
        self.sequence_length = self._sources[0].sequence_length
        self._begins = [stage.first_position for stage in stages]
        assert self._begins[0] == 0
        assert self._begins == sorted(self._begins)
        self._blends = [Blend([stage.shares.get(name, Fraction(0)) for name in self.names]) for stage in stages]
        self._offsets = np.cumsum([0, *(len(samples) for samples in self._sources)])
        self._before = [np.zeros(len(self.names), dtype=np.int64)]  # samples of each source before each stage
        for number, begin in enumerate(self._begins[1:]):
            passed = self._blends[number].counts(begin - self._begins[number])
            self._before.append(self._before[-1] + passed)

    @property
    def sources(self) -> dict[str, Samples]:
        """The sources by name."""
        return dict(zip(self.names, self._sources, strict=True))

    def counts(self, position: int) -> dict[str, int]:
        """Samples of each source at the positions below `position`."""
        stage = bisect_right(self._begins, position) - 1
        found = self._before[stage] + self._blends[stage].counts(position - self._begins[stage])
        return dict(zip(self.names, found.tolist(), strict=True))

    def locate(self, positions: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """(source, position in that source's own order) at `positions` [n]: int64 [n] each."""
        given = np.asarray(positions, dtype=np.int64)
        stages = np.searchsorted(self._begins, given, side="right") - 1
        sources, numbers = np.empty_like(given), np.empty_like(given)
        for stage in set(stages.tolist()):
            here = stages == stage
            found, within = self._blends[stage].locate(given[here] - self._begins[stage])
            sources[here], numbers[here] = found, self._before[stage][found] + within
        return sources, numbers

    def sample_ids(self, positions: ArrayLike) -> np.ndarray:
        """Numbers of the samples at `positions` [n]: int64 [n]; the second source's follow those of the first."""
        sources, numbers = self.locate(positions)
        ids = np.empty_like(numbers)
        for source in set(sources.tolist()):
            here = sources == source
            ids[here] = self._offsets[source] + self._sources[source].sample_ids(numbers[here])
        return ids

    def read(self, positions: ArrayLike, with_begins: bool = False) -> Rows:
        """As :meth:`Samples.read`, and the source of each sample."""
        sources, numbers = self.locate(positions)
        shape = len(numbers), self.sequence_length + 1
        tokens = np.empty(shape, dtype=self._sources[0].dataset.dtype)
        begins: list[list[int]] = [[]] * len(numbers)
        padding: np.ndarray | None = None
        for source in set(sources.tolist()):
            here = sources == source
            rows = self._sources[source].read(numbers[here], with_begins)
            tokens[here] = rows.tokens
            for place, found in zip(np.flatnonzero(here).tolist(), rows.begins or (), strict=with_begins):
                begins[place] = found
            if rows.padding is not None:
                padding = np.zeros(shape, dtype=bool) if padding is None else padding
                padding[here] = rows.padding
        return Rows(tokens, begins if with_begins else None, padding, sources)
