"""Rules of the `data` section that need no dataset."""

from collections.abc import Iterator
from itertools import pairwise

from bigtrain.config.reference import any_of
from bigtrain.config.schema import Config, StageConfig


def data_problems(config: Config) -> Iterator[str]:
    """A message for each rule that is broken."""
    data = config.data
    if data.train is None and not data.sources:
        yield "data.train is missing: give the folder of a dataset, or several as data.sources"
    if data.train is not None and data.sources:
        yield "data.train and data.sources are both given: a mixture's datasets all belong in data.sources"
    if data.stages and not data.sources:
        yield "data.stages changes the shares of data.sources, and there are none"
    yield from _sources(config)
    yield from _stages(config)
    if data.fim_rate and data.packing == "padded":
        yield "data.fim_rate cannot be had with data.packing=padded, where documents are cut at their end"


def _sources(config: Config) -> Iterator[str]:
    weighted, unweighted = [], []
    for name, source in config.data.sources.items():
        given = [key for key in ("weight", "tokens", "epochs") if getattr(source, key) is not None]
        if len(given) > 1:
            yield f"data.sources.{name} has {any_of(given, 'and')}: one of them gives its share"
        elif given == ["weight"]:
            weighted.append(name)
        elif not given:
            unweighted.append(name)
    if weighted and unweighted:
        yield (
            f"data.sources.{unweighted[0]} has no weight and data.sources.{weighted[0]} has one: the share of the "
            "former would be as its size, which compares with no weight; give all of these a weight or none"
        )


def _stages(config: Config) -> Iterator[str]:
    begins = []
    for number, stage in enumerate(config.data.stages):
        if (stage.step is None) == (stage.share is None):
            yield f"data.stages.{number} needs one of step and share, to say when it begins"
            continue
        begins.append(_first_step(stage, config))
        unknown = [name for name in stage.weights if name not in config.data.sources]
        if unknown:
            yield (
                f"data.stages.{number}.weights names {any_of(unknown, 'and')}, which data.sources does not have; "
                f"it has {any_of(list(config.data.sources), 'and')}"
            )
        if not any(stage.weights.values()):
            yield f"data.stages.{number}.weights has no weight above 0"
    if begins and begins[0] < 1:
        yield "data.stages.0 begins with the run; give its shares in data.sources"
    if any(one >= other for one, other in pairwise(begins)):
        yield f"data.stages begin at the steps {any_of([str(b) for b in begins], 'and')}: put them in order"


def _first_step(stage: StageConfig, config: Config) -> int:
    return stage.step or round((stage.share or 0) * config.training.steps)
