"""The order: a bijection, well mixed, and the same for ever."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigtrain.data.order import permute, permute_in_windows, stretches

FROZEN = [
    [761, 566, 35, 430, 5, 223, 115, 492],
    [471, 368, 93, 210, 826, 957, 25, 383],
    [718563980860, 735936226053, 901356018312, 332794538945, 259183728143, 492198198504, 530073634835, 429719088499],
]
SEEDS = st.integers(0, 2**64)


@given(size=st.integers(1, 3000), seed=SEEDS, epoch=st.integers(0, 1000))
def test_every_number_comes_exactly_once(size: int, seed: int, epoch: int) -> None:
    numbers = permute(np.arange(size), size, seed, epoch)
    assert numbers.dtype == np.int64
    np.testing.assert_array_equal(np.sort(numbers), np.arange(size))


@given(size=st.integers(1, 2**40), seed=SEEDS, data=st.data())
def test_the_order_of_a_part_is_the_part_of_the_order(size: int, seed: int, data: st.DataObject) -> None:
    positions = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=50)))
    together = permute(positions, size, seed, 3)
    assert ((together >= 0) & (together < size)).all()
    assert [int(permute(position, size, seed, 3)) for position in positions.tolist()] == together.tolist()
    assert len(set(together.tolist())) == len(set(positions.tolist()))


@pytest.mark.parametrize("size", [2**40, 2**40 - 87, 2**39 + 1])
def test_a_trillion_positions_need_no_table(size: int) -> None:
    positions = np.concatenate([np.arange(50_000), np.arange(size - 50_000, size)])
    numbers = permute(positions, size, seed=1, epoch=0)
    assert len(np.unique(numbers)) == len(positions)
    assert abs(numbers.mean() / size - 0.5) < 0.01


def test_the_shape_is_kept_and_nothing_is_written_to_the_input() -> None:
    positions = np.arange(24).reshape(2, 3, 4)
    numbers = permute(positions, 1000, 0, 0)
    assert numbers.shape == (2, 3, 4)
    np.testing.assert_array_equal(positions.ravel(), np.arange(24))
    assert permute([], 10, 0, 0).shape == (0,)
    assert permute(0, 1, 0, 0).shape == ()


@pytest.mark.parametrize("positions", [[-1], [10], [0, 5, 10]])
def test_a_position_outside_the_epoch_is_an_error(positions: list[int]) -> None:
    with pytest.raises(IndexError, match="of an epoch of 10"):
        permute(positions, 10, 0, 0)


def test_the_order_is_frozen() -> None:
    """A run that is resumed by a later version must go on in the same order: never change these."""
    assert permute(np.arange(8), 1000, 1234, 0).tolist() == FROZEN[0]
    assert permute(np.arange(8), 1000, 1234, 1).tolist() == FROZEN[1]
    assert permute(np.arange(8), 2**40 - 1, 0, 0).tolist() == FROZEN[2]


def chi_square(counts: np.ndarray) -> float:
    """Pearson's statistic against equal counts, in standard deviations from its expectation."""
    expected = counts.sum() / counts.size
    degrees = counts.size - 1
    return float((((counts - expected) ** 2 / expected).sum() - degrees) / np.sqrt(2 * degrees))


@pytest.mark.parametrize("size", [2**17, 100_003, 2**16 + 1])
@pytest.mark.parametrize("seed", [0, 1, 2**63])
def test_no_order_is_left_to_see(size: int, seed: int) -> None:
    numbers = permute(np.arange(size), size, seed, 0)
    where = np.arange(size) * 64 // size
    for digits in (numbers * 64 // size, numbers % 64):  # high and low bits against the position's
        counts = np.zeros((64, 64))
        np.add.at(counts, (where, digits), 1)
        assert abs(chi_square(counts)) < 4
        counts = np.zeros((64, 64))
        np.add.at(counts, (np.arange(size) % 64, digits), 1)
        assert abs(chi_square(counts)) < 4
        counts = np.zeros((64, 64))
        np.add.at(counts, (digits[:-1], digits[1:]), 1)  # of neighbours
        assert abs(chi_square(counts)) < 4
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 4 / np.sqrt(size)
    assert np.count_nonzero(np.diff(numbers) == 1) < 10  # a random order has about one
    assert np.count_nonzero(numbers == np.arange(size)) < 10


def test_seeds_and_epochs_give_unrelated_orders() -> None:
    size = 50_000
    orders = [permute(np.arange(size), size, seed, epoch) for seed, epoch in itertools.product((0, 1, 2**32), (0, 1))]
    for first, second in itertools.combinations(orders, 2):
        assert np.count_nonzero(first == second) < 12
        assert abs(np.corrcoef(first, second)[0, 1]) < 4 / np.sqrt(size)


def test_a_small_size_reaches_every_order_equally_often() -> None:
    orders = list(itertools.permutations(range(4)))
    counts = np.zeros(len(orders))
    for seed in range(600):
        counts[orders.index(tuple(permute(np.arange(4), 4, seed, 0).tolist()))] += 1
    assert abs(chi_square(counts)) < 4


@given(size=st.integers(1, 400), window=st.integers(1, 130), seed=SEEDS, epoch=st.integers(0, 1000))
def test_windows_are_read_one_after_the_other(size: int, window: int, seed: int, epoch: int) -> None:
    numbers = permute_in_windows(np.arange(size), size, window, seed, epoch)
    np.testing.assert_array_equal(np.sort(numbers), np.arange(size))
    if window < size:
        for first in range(0, size, window):
            assert len(set((numbers[first : first + window] // window).tolist())) == 1
        assert set((numbers[size // window * window :] // window).tolist()) <= {size // window}
    else:
        np.testing.assert_array_equal(numbers, permute(np.arange(size), size, seed, epoch))
    told = [number for begin, end in stretches(size, window, seed, epoch) for number in range(begin, end)]
    assert [number // window for number in told] == (numbers // window).tolist()
    alone = [int(permute_in_windows(position, size, window, seed, epoch)) for position in range(0, size, 29)]
    assert alone == numbers[::29].tolist()


def test_windows_differ_in_their_order_from_each_other_and_from_epoch_to_epoch() -> None:
    first = permute_in_windows(np.arange(10_000), 10_000, 100, 0, 0).reshape(100, 100)
    second = permute_in_windows(np.arange(10_000), 10_000, 100, 0, 1).reshape(100, 100)
    assert len({tuple((row % 100).tolist()) for row in np.concatenate([first, second])}) == 200
    assert (first[:, 0] // 100 != second[:, 0] // 100).sum() > 90
