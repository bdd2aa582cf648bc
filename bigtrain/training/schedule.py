"""The learning rate as a pure function of the step."""

import math

from bigtrain.config import Config


def learning_rate(config: Config, step: int) -> float:
    """The rate of the step that follows `step` finished ones.

    It rises linearly to the peak, which step number `warmup_steps` has, and then follows
    `schedule.name`; the last step of the run has `min_lr_ratio` of the peak (all but `constant`).
    """
    schedule, peak, steps = config.schedule, config.optimizer.lr, config.training.steps
    number = step + 1
    if number <= schedule.warmup_steps:
        return peak * number / schedule.warmup_steps
    if schedule.name == "constant":
        return peak
    begin = steps - schedule.decay_steps if schedule.name == "wsd" else schedule.warmup_steps
    progress = min(1.0, max(0.0, (number - begin) / max(1, steps - begin)))
    fall = (1 - math.cos(math.pi * progress)) / 2 if schedule.name == "cosine" else progress
    return peak * (1 - (1 - schedule.min_lr_ratio) * fall)
