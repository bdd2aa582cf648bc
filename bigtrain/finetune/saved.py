"""A fine-tuned run and the examples that it is to judge. Nothing here needs torch."""

from collections.abc import Sequence
from pathlib import Path

from bigtrain.checkpoint.find import find_best
from bigtrain.config import Config, load_config
from bigtrain.config.tasks import Task
from bigtrain.data.examples import Examples, check_labels, read_examples
from bigtrain.data.tokenizer import load_tokenizer
from bigtrain.errors import CheckpointError, ConfigError
from bigtrain.evaluate.predictions import truth_of
from bigtrain.finetune.encode import Encoded, Encoder

_ONE_PROCESS = (
    "parallel.tensor=1",
    "parallel.pipeline=1",
    "parallel.virtual_pipeline=1",
    "parallel.layers_per_stage=null",
    "parallel.sequence=false",
)


def load_run(run: Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a fine-tuned run, to be run on one process or as `overrides` say.

    Raises:
        UserError: It is no run's folder, or not one of fine-tuning, or has no checkpoint.
    """
    file = run / "config.yaml"
    if not file.is_file():
        raise CheckpointError(f"{run} is not a run's folder: it has no config.yaml")
    config = load_config(file, [*_ONE_PROCESS, *overrides])
    if config.finetune.task is None:
        raise ConfigError(
            f"{run} is a run of pretraining: fine-tune it first, with `bigtrain finetune`; or export it, with "
            "`bigtrain convert to-hf`, and have the folder predict a dataset"
        )
    find_best(run)
    return config


def open_examples(config: Config, data: Path, run: Path) -> Encoded:
    """The examples of a file, with or without labels, as the run's model reads them.

    Raises:
        DataError: The file cannot be read, or has labels that the model cannot give.
    """
    options = config.finetune
    assert options.task is not None, "the configuration was checked"
    examples = _labelled_or_not(config, data)
    if options.labels is not None:
        check_labels(examples, options.labels, str(run))
    return Encoder(config, load_tokenizer(run / "tokenizer"), options.labels or ()).encode(examples)


def _labelled_or_not(config: Config, data: Path) -> Examples:
    """A label that is missing from some examples alone makes these left out, and is told."""
    options = config.finetune
    assert options.task is not None, "the configuration was checked"
    everything = read_examples(data, options.task, options.columns, labelled=False)
    return read_examples(data, options.task, options.columns) if has_labels(everything, options.task) else everything


def has_labels(examples: Examples, task: Task) -> bool:
    """Whether some of them say what is right."""
    return any(truth_of(example, task) is not None for example in examples.examples)
