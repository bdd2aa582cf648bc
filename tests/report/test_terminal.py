"""The curve in characters."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigtrain.report.terminal import terminal_curve

LOSSES = st.floats(-1e6, 1e6).map(lambda value: round(value, 3))


def test_a_falling_line_with_its_axes() -> None:
    drawn = terminal_curve([(1, 4.0), (100, 1.0)], [(100, 1.5)], width=46, height=5, marks=[50])
    assert drawn == "\n".join(
        [
            "4.00 ┤⠉⠓⠒⠦⠤⣄⣀⡀           ╎",
            "     ┤       ⠉⠉⠓⠒⠦⠤⢤⣀⣀   ╎",
            "     ┤               ⠈⠉⠙⠒⠲⠤⢤⣀⣀",
            "     ┤                   ╎   ⠈⠉⠙⠒⠒⠦⠤⣄⣀⡀      ●",
            "1.00 ┤                   ╎            ⠉⠉⠓⠒⠦⠤⣄⣀",
            "     └────────────────────────────────────────",
            "      1   step  ● validation  ╎ resumed    100",
        ]
    )


@given(
    losses=st.lists(LOSSES, min_size=1, max_size=300),
    validation=st.lists(LOSSES, max_size=20),
    width=st.integers(30, 120),
    height=st.integers(2, 40),
)
def test_it_fits_its_frame_and_shows_the_extremes(
    losses: list[float], validation: list[float], width: int, height: int
) -> None:
    train = [(float(step), loss) for step, loss in enumerate(losses, start=1)]
    points = [(float(step), loss) for step, loss in enumerate(validation, start=1)]
    lines = terminal_curve(train, points, width=width, height=height).splitlines()
    assert len(lines) == height + 2
    drawing = [line.partition("┤")[2] for line in lines[:height]]
    assert any("\u2800" < character <= "\u28ff" or character == "●" for line in drawing for character in line)
    values = losses + validation
    top, bottom = (float(lines[row].partition("┤")[0]) for row in (0, height - 1))
    assert top == pytest.approx(max(values), abs=0.0051)
    assert bottom == pytest.approx(min(values), abs=0.0051)
    if max(values) > min(values):
        assert drawing[0].strip()
        assert drawing[-1].strip()


def test_losses_that_are_no_numbers_are_left_out() -> None:
    train = [(1.0, 3.0), (2.0, float("nan")), (3.0, float("inf")), (4.0, 2.0)]
    assert terminal_curve(train) == terminal_curve([train[0], train[3]])
