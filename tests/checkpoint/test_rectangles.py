"""Cutting flat ranges: every element once, in order, in few pieces."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigtrain.checkpoint.rectangles import rectangles

SHAPES = st.lists(st.integers(1, 5), max_size=5).map(tuple)


@st.composite
def ranges(draw: st.DrawFn) -> tuple[tuple[int, ...], int, int]:
    """A box and a flat range within it, which may be empty."""
    shape = draw(SHAPES)
    start, stop = sorted(draw(st.lists(st.integers(0, math.prod(shape)), min_size=2, max_size=2)))
    return shape, start, stop


def cut(shape: tuple[int, ...], corner: tuple[int, ...], size: tuple[int, ...]) -> list[int]:
    """The flat indices of a rectangle, by numpy's slices."""
    index = np.arange(math.prod(shape)).reshape(shape)
    return index[tuple(slice(c, c + s) for c, s in zip(corner, size, strict=True))].ravel().tolist()


@given(ranges())
def test_they_tile_the_range_in_order(case: tuple[tuple[int, ...], int, int]) -> None:
    shape, start, stop = case
    tiled: list[int] = []
    for corner, size, begins in rectangles(shape, start, stop):
        piece = cut(shape, corner, size)
        assert piece[0] == begins, "where it says it begins"
        tiled += piece
    assert tiled == list(range(start, stop))


@given(ranges())
def test_they_are_few_and_not_empty(case: tuple[tuple[int, ...], int, int]) -> None:
    found = list(rectangles(*case))
    assert len(found) <= max(1, 2 * len(case[0]) - 1)
    assert all(math.prod(size) for _, size, _ in found)


@given(ranges(), st.data())
def test_cutting_a_range_in_two_changes_nothing(case: tuple[tuple[int, ...], int, int], data: st.DataObject) -> None:
    """What two processes write is what one would write."""
    shape, start, stop = case
    middle = data.draw(st.integers(start, stop))
    parts = [*rectangles(shape, start, middle), *rectangles(shape, middle, stop)]
    assert [i for corner, size, _ in parts for i in cut(shape, corner, size)] == list(range(start, stop))


@given(SHAPES)
def test_the_whole_is_one_and_nothing_is_none(shape: tuple[int, ...]) -> None:
    everything = math.prod(shape)
    assert list(rectangles(shape, 0, everything)) == [((0,) * len(shape), shape, 0)]
    assert list(rectangles(shape, everything, everything)) == []


@pytest.mark.parametrize(
    ("shape", "start", "stop", "expected"),
    [
        ((), 0, 1, [((), (), 0)]),
        ((7,), 2, 5, [((2,), (3,), 2)]),
        ((3, 4), 2, 11, [((0, 2), (1, 2), 2), ((1, 0), (1, 4), 4), ((2, 0), (1, 3), 8)]),
        ((3, 4), 4, 12, [((1, 0), (2, 4), 4)]),
        ((3, 4), 5, 7, [((1, 1), (1, 2), 5)]),
    ],
)
def test_by_hand(shape: tuple[int, ...], start: int, stop: int, expected: list[object]) -> None:
    assert list(rectangles(shape, start, stop)) == expected
