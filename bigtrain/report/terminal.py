"""The loss curve in a terminal's characters."""

from collections.abc import Sequence

Points = Sequence[tuple[float, float]]

_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
"""Bits of a Braille character (from U+2800): its left column from the top, then its right."""


def terminal_curve(
    train: Points, validation: Points = (), *, width: int = 72, height: int = 14, marks: Sequence[float] = ()
) -> str:
    """Draw (step, loss) points: a line for training, `●` for validation, `╎` where the run was resumed.

    Args:
        train: Steps in ascending order, not empty.
        validation: The same of held-out text.
        width: Columns, the labels at the left included.
        height: Rows of the drawing; the labels take two more.
        marks: Steps to mark by a vertical line.
    """
    finite = [(x, y) for x, y in train if abs(y) < float("inf")]
    values = [y for _, y in (*finite, *validation)] or [0.0]
    low, high = min(values), max(values)
    first, last = train[0][0], train[-1][0]
    labels = _labels(low, high, height)
    margin = max(map(len, labels)) + 2
    columns = max(8, width - margin)

    def column(x: float, count: int) -> int:
        return 0 if last == first else min(count - 1, max(0, round((x - first) / (last - first) * (count - 1))))

    def row(y: float, count: int) -> int:
        return count - 1 if high == low else round((high - y) / (high - low) * (count - 1))

    canvas = [[0] * columns for _ in range(height)]
    for across, top, bottom in _strokes([(column(x, 2 * columns), row(y, 4 * height)) for x, y in finite]):
        for dot in range(top, bottom + 1):
            canvas[dot // 4][across // 2] |= _DOTS[across % 2][dot % 4]
    drawn = [[chr(0x2800 + dots) if dots else " " for dots in line] for line in canvas]
    for mark in marks:
        for line in drawn:
            if line[column(mark, columns)] == " ":
                line[column(mark, columns)] = "╎"
    for x, y in validation:
        drawn[row(y, height)][column(x, columns)] = "●"
    lines = [f"{label:>{margin - 2}} ┤{''.join(line).rstrip()}" for label, line in zip(labels, drawn, strict=True)]
    return "\n".join([*lines, *_bottom(margin, columns, first, last, bool(validation), bool(marks))])


def _strokes(dots: Sequence[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """A joined line through the dots: (column, top, bottom) for each column it touches.

    The mean of what falls into a column, joined halfway to its neighbours.
    """
    heaps: dict[int, list[int]] = {}
    for x, y in dots:
        heaps.setdefault(x, []).append(y)
    path = [(x, round(sum(ys) / len(ys))) for x, ys in sorted(heaps.items())]
    strokes = []
    for (x, y), (next_x, next_y) in zip(path, [*path[1:], path[-1]] if path else [], strict=True):
        steps = max(1, next_x - x)
        for i in range(steps):
            here, there = (round(y + (next_y - y) * (i + part) / steps) for part in (0, 1))
            strokes.append((x + i, min(here, there), max(here, there)))
    return strokes


def _labels(low: float, high: float, height: int) -> list[str]:
    """A value at the top, the bottom and every fourth row; blank elsewhere."""
    step = (high - low) / max(1, height - 1)
    digits = 2 if high - low >= 0.1 else 4
    shown = {0, height - 1, *range(4, height - 3, 4)}
    return [f"{high - step * i:.{digits}f}" if i in shown else "" for i in range(height)]


def _bottom(margin: int, columns: int, first: float, last: float, validation: bool, marks: bool) -> list[str]:
    left, right = f"{first:,.0f}", f"{last:,.0f}"
    key = "  ".join(["step", *(["● validation"] if validation else []), *(["╎ resumed"] if marks else [])])
    space = columns - len(left) - len(right)
    return [" " * (margin - 1) + "└" + "─" * columns, f"{' ' * margin}{left}{key:^{max(space, len(key) + 2)}}{right}"]
