"""The blend: exact to within one sample at every point, and the same wherever one begins to look."""

from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigtrain.data.blend import SMALLEST_SHARE, Blend

FROZEN = [
    [0, 1, 0, 2, 0, 1, 0, 1, 0, 2, 3, 0, 1, 0, 2, 0, 1, 0, 1, 0, 2, 3],
    [3, 0, 1, 0, 2, 0, 1, 0, 1, 0, 2, 3, 0, 1, 0, 2, 0, 1, 0, 1, 0, 2],
    [454547317, 272728390, 181818927, 90909463],
]
WHOLE = st.integers(1, 40).map(Fraction)
ODD = st.floats(0.002, 1, allow_nan=False).map(Fraction)
WEIGHTS = st.one_of(st.lists(WHOLE, min_size=1, max_size=9), st.lists(ODD, min_size=1, max_size=9))


def shares_of(weights: list[Fraction]) -> list[Fraction]:
    return [weight / sum(weights) for weight in weights]


@settings(max_examples=30)
@given(weights=WEIGHTS, far=st.sampled_from([0, 1, 10**6, 10**11]), offset=st.integers(0, 10**5))
def test_no_source_is_ever_a_whole_sample_off(weights: list[Fraction], far: int, offset: int) -> None:
    """Across the border of two blocks, near the begin and after a hundred thousand million samples."""
    shares = shares_of(weights)
    blend = Blend(shares)
    begin = max(0, (far + offset) // blend._block_size * blend._block_size - 500)
    counts = blend.counts(begin)
    assert sum(counts) == begin
    sources, numbers = blend.locate(range(begin, begin + 1500))
    for position, (source, number) in enumerate(zip(sources.tolist(), numbers.tolist(), strict=True), begin + 1):
        assert number == counts[source], "a source's samples come one after the other"
        counts[source] += 1
        assert all(abs(count - share * position) < 1 for count, share in zip(counts, shares, strict=True))
    assert blend.counts(begin + 1500) == counts


@settings(max_examples=20)
@given(weights=WEIGHTS, positions=st.lists(st.integers(0, 10**9), min_size=1, max_size=5))
def test_a_position_says_the_same_to_everyone(weights: list[Fraction], positions: list[int]) -> None:
    shares = shares_of(weights)
    together = list(zip(*(found.tolist() for found in Blend(shares).locate(positions)), strict=True))
    alone = [Blend(shares).locate([position]) for position in positions]
    assert together == [(int(source[0]), int(number[0])) for source, number in alone]


def test_whole_periods_are_exact() -> None:
    blend = Blend([Fraction(7, 10), Fraction(2, 10), Fraction(1, 10), Fraction(0)])
    for begin in (0, 4090, 10**9):
        assert Counter(blend.locate(range(begin, begin + 1000))[0].tolist()) == {0: 700, 1: 200, 2: 100}
    assert blend.counts(10**12) == [7 * 10**11, 2 * 10**11, 10**11, 0]


def test_the_smallest_share_is_kept_too() -> None:
    blend = Blend([1 - SMALLEST_SHARE, SMALLEST_SHARE])
    assert blend.counts(10**9) == [10**9 - 10**4, 10**4]


def test_the_blend_is_frozen() -> None:
    """A run that is resumed by a later version must go on with the same: never change these."""
    blend = Blend(shares_of([Fraction(weight) for weight in (5, 3, 2, 1)]))
    assert blend.locate(range(22))[0].tolist() == FROZEN[0]
    assert blend.locate(range(10**9, 10**9 + 22))[0].tolist() == FROZEN[1]
    assert blend.counts(10**9 + 4097) == FROZEN[2]


def test_a_share_that_is_too_small_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError):
        Blend([1 - SMALLEST_SHARE / 2, SMALLEST_SHARE / 2])
