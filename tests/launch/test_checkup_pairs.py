"""The order in which nodes meet."""

from itertools import combinations

import pytest

from bigtrain.launch.checkup_pairs import partner, rounds


@pytest.mark.parametrize("count", [*range(2, 18), 65])
def test_all_meet_all_once_each_with_one_at_a_time(count: int) -> None:
    met = []
    for number in range(rounds(count)):
        partners = {place: partner(place, number, count) for place in range(count)}
        pairs = {(place, other) for place, other in partners.items() if other is not None}
        assert all((other, place) in pairs for place, other in pairs)
        assert all(place != other for place, other in pairs)
        assert len(pairs) == count - count % 2
        met += [(place, other) for place, other in pairs if place < other]
    assert sorted(met) == list(combinations(range(count), 2))
