"""How far two histories of the same steps lie apart, and how far is too far."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bigtrain.verify.legs import Outcome

FIRST_STEP = {"fp32": 1e-6, "bf16": 2e-3}
"""Largest relative difference of loss or gradient norm in the first step. In bfloat16 each activation is rounded by
up to 4e-3, of which sums leave little: seen were 2e-4 over all layouts of four processes."""
LATER_STEPS = {"fp32": 1e-4, "bf16": 1e-1}
"""The same in any step."""
CONTROLS = 10.0
"""How often the control's drift a layout's may be, where that is less."""
FLOOR = 1e-6
"""A drift below which no control is asked."""


@dataclass(frozen=True)
class Row:
    """A layout beside the one process."""

    name: str
    loss: float
    """Of the first step."""
    grad_norm: float
    first_difference: float
    """Larger relative difference of loss and gradient norm in the first step."""
    largest_difference: float
    """The same over all steps."""
    same_samples: bool
    agrees: bool


def differences(outcome: Outcome, reference: Outcome) -> np.ndarray:
    """The larger relative difference of loss and gradient norm, step by step; NaN where one of the numbers is."""
    ours = np.array([outcome.losses, outcome.grad_norms])
    theirs = np.array([reference.losses, reference.grad_norms])
    return np.abs(ours / theirs - 1).max(axis=0)


def compare(outcome: Outcome, reference: Outcome, control: float, precision: str, *, from_start: bool = True) -> Row:
    """Judge a layout by one process and by the drift of a control, which only sums in another order.

    It agrees if no step differs by more than `LATER_STEPS`, nor by more than `CONTROLS` times the control's largest
    difference, nor the first by more than `FIRST_STEP`; that only `from_start`, before rounding has had time to grow.
    """
    drift = differences(outcome, reference)
    allowed = min(LATER_STEPS[precision], max(CONTROLS * control, FLOOR))
    same_samples = outcome.sample_ids == reference.sample_ids
    first = FIRST_STEP[precision] if from_start else allowed
    return Row(
        name=outcome.name,
        loss=outcome.losses[0],
        grad_norm=outcome.grad_norms[0],
        first_difference=float(drift[0]),
        largest_difference=float(drift.max()),
        same_samples=same_samples,
        agrees=bool(drift[0] <= first and (drift <= allowed).all()) and same_samples,  # NaN is not below anything
    )


def control_drift(reference: Outcome, controls: Sequence[Outcome]) -> float:
    """The largest difference of any control in any step."""
    return float(np.max([differences(control, reference).max() for control in controls]))


def cut(outcome: Outcome, first: int, last: int) -> Outcome:
    """Steps [first, last) of a history that begins with step 0."""
    return Outcome(
        outcome.name,
        outcome.losses[first:last],
        outcome.grad_norms[first:last],
        outcome.learning_rates[first:last],
        outcome.sample_ids[first:last],
        outcome.digests,
        outcome.seconds,
    )
