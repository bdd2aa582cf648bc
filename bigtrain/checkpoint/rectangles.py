"""Cut a flat range of a box into hyper-rectangles: the geometry behind layout-free checkpoints."""

import math
from collections.abc import Iterator

Rectangle = tuple[tuple[int, ...], tuple[int, ...], int]
"""Corner in the box, size along each axis, and where it begins in the flattened box."""


def rectangles(shape: tuple[int, ...], start: int, stop: int) -> Iterator[Rectangle]:
    """The fewest axis-aligned rectangles that tile the flat range [start, stop) of a row-major box.

    At most 2 * len(shape) - 1 of them: a partial first row, whole rows, a partial last row, and the
    same within the partial rows.
    """
    if start >= stop:
        return
    if not shape:
        yield (), (), start
        return
    row = math.prod(shape[1:])
    first, last = start // row, (stop - 1) // row
    if first == last:
        yield from _within(shape, first, start, stop)
        return
    first_whole, after_whole = -(-start // row), stop // row
    if start % row:
        yield from _within(shape, first, start, first_whole * row)
    if first_whole < after_whole:
        corner = (first_whole,) + (0,) * (len(shape) - 1)
        yield corner, (after_whole - first_whole, *shape[1:]), first_whole * row
    if stop % row:
        yield from _within(shape, last, after_whole * row, stop)


def _within(shape: tuple[int, ...], index: int, start: int, stop: int) -> Iterator[Rectangle]:
    base = index * math.prod(shape[1:])
    for corner, size, begins in rectangles(shape[1:], start - base, stop - base):
        yield (index, *corner), (1, *size), base + begins
