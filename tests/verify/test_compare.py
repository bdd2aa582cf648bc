"""What counts as the same history."""

import math
from dataclasses import replace

import pytest

from bigtrain.verify.compare import compare, control_drift, cut, differences
from bigtrain.verify.legs import Outcome

REFERENCE = Outcome("one", [4.0, 3.0, 2.0], [1.0, 1.0, 0.5], [0.1, 0.1, 0.1], [[1, 2], [3, 4], [5, 6]], {}, 1.0)


def changed(step: int, relative: float, what: str = "losses") -> Outcome:
    values = list(getattr(REFERENCE, what))
    values[step] *= 1 + relative
    return replace(REFERENCE, name="other", **{what: values})


def test_the_larger_difference_counts() -> None:
    other = replace(changed(1, 1e-3), grad_norms=[1.0, 1.0, 0.51])
    assert differences(other, REFERENCE) == pytest.approx([0, 1e-3, 2e-2])
    assert control_drift(REFERENCE, [REFERENCE, other]) == pytest.approx(2e-2)


@pytest.mark.parametrize("what", ["losses", "grad_norms"])
@pytest.mark.parametrize(
    ("step", "relative", "agrees"),
    [(0, 5e-7, True), (0, 2e-6, False), (2, 5e-6, True), (2, 2e-5, False), (2, -2e-5, False), (1, math.nan, False)],
)
def test_as_far_as_the_control_allows(what: str, step: int, relative: float, agrees: bool) -> None:
    row = compare(changed(step, relative, what), REFERENCE, control=1e-6, precision="fp32")
    assert row.agrees == agrees
    if not math.isnan(relative):
        assert row.largest_difference == pytest.approx(abs(relative), rel=1e-3)


def test_no_control_excuses_more_than_a_ten_thousandth() -> None:
    assert compare(changed(2, 9e-5), REFERENCE, control=1.0, precision="fp32").agrees
    assert not compare(changed(2, 2e-4), REFERENCE, control=1.0, precision="fp32").agrees


def test_later_stretches_begin_with_a_drift() -> None:
    assert compare(changed(0, 5e-6), REFERENCE, control=1e-6, precision="fp32", from_start=False).agrees


def test_other_samples_are_never_the_same_run() -> None:
    row = compare(replace(REFERENCE, sample_ids=[[1, 2], [3, 4], [6, 5]]), REFERENCE, control=1e-6, precision="fp32")
    assert not row.same_samples
    assert not row.agrees


def test_a_cut_keeps_the_steps_together() -> None:
    part = cut(REFERENCE, 1, 3)
    assert (part.losses, part.grad_norms, part.sample_ids) == ([3.0, 2.0], [1.0, 0.5], [[3, 4], [5, 6]])
