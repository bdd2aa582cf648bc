"""The configuration of a run, of which a checkpoint or folder may tell the model. Needs neither torch nor pyarrow: a
mistake is told at once."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bigtrain.checkpoint.find import find_best
from bigtrain.checkpoint.places import place
from bigtrain.config import Config, ModelConfig, load_config
from bigtrain.config.load import said
from bigtrain.config.reading import STANDARD_INPUT, Layer
from bigtrain.convert.source import model_config
from bigtrain.errors import UserError
from bigtrain.training.beginning import is_hugging_face

BEGIN = "checkpoint.initialize_from"


def load_task_config(path: Path, overrides: Sequence[str]) -> Config:
    """A configuration; of fine-tuning the model's shape is that of the checkpoint `checkpoint.initialize_from`, and of
    any run that of a Hugging Face folder.

    Raises:
        UserError: It cannot be read, or there is no such checkpoint.
    """
    if path == STANDARD_INPUT:  # from a process that has made it whole
        return load_config(path, overrides)
    tree = said(path, overrides)
    task, begin = (_said_of(tree, *keys) for keys in (("finetune", "task"), ("checkpoint", "initialize_from")))
    if not isinstance(begin, str):
        return load_config(path, overrides)
    with of_key(BEGIN):
        from_hub = is_hugging_face(place(begin))
        if task is None and not from_hub:
            return load_config(path, overrides)
        shape = _shape_there(place(begin)) if from_hub else model_config(find_best(place(begin)))
    return load_config(path, overrides, [Layer(begin, {"model": shape.model_dump(mode="json")})])


def _shape_there(folder: Path) -> ModelConfig:
    """That of a Hugging Face model."""
    from bigtrain.convert.hf_config import read_config  # takes transformers, and seconds

    return read_config(folder)[1]


def _said_of(tree: Mapping[str, Any], section: str, key: str) -> Any:
    below = tree.get(section)
    return below.get(key) if isinstance(below, Mapping) else None


@contextmanager
def of_key(key: str) -> Iterator[None]:
    """A mistake in what a key names is told with the key."""
    try:
        yield
    except UserError as error:
        raise type(error)(f"{key}: {error}") from None
