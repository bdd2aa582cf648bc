"""From the words of a configuration to the shares of a mixture, stage by stage."""

from collections.abc import Mapping
from fractions import Fraction

from bigtrain.config import Config
from bigtrain.data.blend import SMALLEST_SHARE
from bigtrain.data.mixture import Stage
from bigtrain.errors import ConfigError


def stages_of(config: Config, tokens: Mapping[str, int]) -> list[Stage]:
    """The stages of `data.sources` and `data.stages`, whose rules `config.validate` has checked.

    Args:
        config: The run's.
        tokens: Of each source's dataset.

    Raises:
        ConfigError: The budgets do not fit the run, or a share is too small to keep.
    """
    training = config.training
    steps = [stage.step or round((stage.share or 0) * training.steps) for stage in config.data.stages]
    first_ends = min(steps[0], training.steps) if steps else training.steps
    stages = [Stage(0, _first_shares(config, tokens, first_ends))]
    for step, stage in zip(steps, config.data.stages, strict=True):
        weights = {name: _exact(weight) for name, weight in stage.weights.items()}
        stages.append(Stage(step * training.global_batch_size, _normalised(weights)))
    for planned in stages:
        for name, share in planned.shares.items():
            if 0 < share < SMALLEST_SHARE:
                raise ConfigError(
                    f"data.sources.{name}: its share of the mixture is {float(share):.1e}; the smallest is "
                    f"{float(SMALLEST_SHARE):g}: raise it, or leave the source out"
                )
    return stages


def _first_shares(config: Config, tokens: Mapping[str, int], steps: int) -> dict[str, Fraction]:
    """The shares that the sources themselves tell, for the first `steps` steps."""
    sources = config.data.sources
    budgets = {
        name: _exact(source.tokens) if source.tokens else _exact(source.epochs or 0) * tokens[name]
        for name, source in sources.items()
        if source.tokens or source.epochs
    }
    others = [name for name in sources if name not in budgets]
    total = Fraction(_tokens_of(config, steps))
    _check_budgets(config, sum(budgets.values()), steps, alone=not others)
    if not others:
        return _normalised(budgets)
    shares = {name: budget / total for name, budget in budgets.items()}
    by_size = 1 / config.data.temperature
    weights = {
        name: Fraction(tokens[name] ** by_size) if (weight := sources[name].weight) is None else _exact(weight)
        for name in others
    }
    rest = 1 - sum(shares.values(), Fraction(0))
    shares |= {name: rest * share for name, share in _normalised(weights).items()}
    return {name: shares[name] for name in sources}


def _check_budgets(config: Config, budget: Fraction | int, steps: int, alone: bool) -> None:
    """Budgets must leave room for the other sources, or make up all of the steps; one step more or less is rounding."""
    wanted, step_tokens = _tokens_of(config, steps), _tokens_of(config, 1)
    too_much = budget > wanted + (step_tokens if alone else -step_tokens)
    too_little = alone and budget < wanted - step_tokens
    if too_much or too_little:
        until = "before the first of data.stages" if config.data.stages else "in the run"
        remedy = (
            f"training.steps={round(budget / step_tokens)} would fit"
            if alone and not config.data.stages
            else ("change the budgets, or training.steps")
        )
        raise ConfigError(
            f"data.sources: the budgets (tokens, epochs) make {float(budget):,.0f} tokens, and {wanted:,} are read "
            f"{until} ({steps} steps of {step_tokens:,})"
            f"{'' if alone else ', of which the sources without a budget need some'}; {remedy}"
        )


def _tokens_of(config: Config, steps: int) -> int:
    return steps * config.training.global_batch_size * config.training.sequence_length


def _normalised(weights: Mapping[str, Fraction]) -> dict[str, Fraction]:
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def _exact(number: float) -> Fraction:
    """0.1 is a tenth, as the user wrote it."""
    return Fraction(str(number))
