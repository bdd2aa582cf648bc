"""A pseudo-random order that is computed, not stored.

`permute` is a bijection of [0, size) chosen by (seed, epoch): position p of the epoch reads sample
permute(p). It costs a few arithmetic operations a position and no memory, whatever the size, so that
any process can start anywhere in the order at once.

Construction. A Feistel network of eight rounds is a bijection of the 2^b smallest numbers, whatever its
round function is (Luby and Rackoff 1988, "How to construct pseudorandom permutations from pseudorandom
functions"). The number's bits are cut in a left and a right part, of floor(b/2) and ceil(b/2) bits; a
round replaces (left, right) by (right, left xor f(right)), cut to the left part's width, so that the two
widths change places. f is the finaliser of SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable
pseudorandom number generators"; constants from Stafford's variant 13) of the part xor the round's key.
For a size that is no power of two, b is the smallest with 2^b >= size, and a result beyond the size goes through the
network again until it falls below it: "cycle walking" (Black and Rogaway 2002, "Ciphers with arbitrary
finite domains"), fewer than two passes on average. The order is meant to look random, not to keep secrets.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike

_ROUNDS = 8
_MINIMUM_BITS = 6
"""A network of fewer bits does not reach every order equally often; a small size walks in a larger one."""
_MASK_64 = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLY_1 = 0xBF58476D1CE4E5B9
_MULTIPLY_2 = 0x94D049BB133111EB


def permute(positions: ArrayLike, size: int, seed: int, epoch: int) -> np.ndarray:
    """The samples at `positions` of epoch `epoch`: int64, of the shape of `positions`.

    `positions` are whole numbers in [0, size); `size` is at most 2^62; `seed` and `epoch` any whole numbers.

    Raises:
        IndexError: a position outside [0, size).
    """
    given = np.asarray(positions, dtype=np.int64)
    if given.size and not 0 <= given.min() <= given.max() < size:
        raise IndexError(f"positions {given.min()} to {given.max()} of an epoch of {size}")
    keys = _round_keys(seed, epoch)
    bits = max(_MINIMUM_BITS, (size - 1).bit_length())
    numbers = _feistel(given.ravel().astype(np.uint64), bits, keys)
    outside = np.flatnonzero(numbers >= size)
    while outside.size:
        again = _feistel(numbers[outside], bits, keys)
        numbers[outside] = again
        outside = outside[again >= size]
    return numbers.astype(np.int64).reshape(given.shape)


def permute_in_windows(positions: ArrayLike, size: int, window: int, seed: int, epoch: int) -> np.ndarray:
    """The same, reading one stretch of `window` neighbouring samples at a time: the stretches in a pseudo-random order,
    and the samples of each in one of its own. What does not fill a last stretch comes at the epoch's end.

    `positions`, `size`, `seed`, `epoch` and what is returned and raised are as for :func:`permute`.
    """
    if window >= size:
        return permute(positions, size, seed, epoch)
    given = np.asarray(positions, dtype=np.int64)
    if given.size and not 0 <= given.min() <= given.max() < size:
        raise IndexError(f"positions {given.min()} to {given.max()} of an epoch of {size}")
    whole = size // window
    stretches, within = np.divmod(given.ravel(), window)
    shuffled = stretches < whole  # the last, shorter one keeps its place
    stretches[shuffled] = permute(stretches[shuffled], whole, seed, _key(epoch, 0))
    samples = np.empty_like(within)
    for stretch in set(stretches.tolist()):
        here = stretches == stretch
        length = min(window, size - stretch * window)
        samples[here] = stretch * window + permute(within[here], length, seed, _key(epoch, stretch + 1))
    return samples.reshape(given.shape)


def stretches(size: int, window: int, seed: int, epoch: int, first: int = 0) -> Iterator[tuple[int, int]]:
    """(first sample, the one after the last) of each stretch of :func:`permute_in_windows`, in the order of reading,
    from number `first` on."""
    whole = size // window if window < size else 0
    for slot in range(first, whole):
        stretch = int(permute(slot, whole, seed, _key(epoch, 0)))
        yield stretch * window, (stretch + 1) * window
    if size > whole * window:
        yield whole * window, size


def _key(epoch: int, number: int) -> int:
    """One number for two, in the place of an epoch."""
    return _mix_integer(_mix_integer(epoch + _GOLDEN) + number)


def _feistel(numbers: np.ndarray, bits: int, keys: list[int]) -> np.ndarray:
    left_bits, right_bits = bits // 2, bits - bits // 2
    left = numbers >> np.uint64(right_bits)
    right = numbers & np.uint64(2**right_bits - 1)
    for key in keys:
        left, right = right, left ^ (_mix(right ^ np.uint64(key)) & np.uint64(2**left_bits - 1))
        left_bits, right_bits = right_bits, left_bits
    return (left << np.uint64(right_bits)) | right


def _mix(numbers: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser: every bit of the result depends on every bit of the number."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(_MULTIPLY_1)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(_MULTIPLY_2)
    return numbers ^ (numbers >> np.uint64(31))


def _round_keys(seed: int, epoch: int) -> list[int]:
    """Keys of the rounds: SplitMix64's outputs from a state that (seed, epoch) give."""
    state = _mix_integer(_mix_integer(seed + _GOLDEN) + epoch)
    return [_mix_integer(state + _GOLDEN * (number + 1)) for number in range(_ROUNDS)]


def _mix_integer(number: int) -> int:
    """`_mix` for one Python integer, taken modulo 2^64."""
    number &= _MASK_64
    number = (number ^ (number >> 30)) * _MULTIPLY_1 & _MASK_64
    number = (number ^ (number >> 27)) * _MULTIPLY_2 & _MASK_64
    return number ^ (number >> 31)
