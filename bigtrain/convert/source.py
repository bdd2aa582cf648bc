"""What a checkpoint's conversion starts from: the run, the model's shape, the tokenizer. Nothing here needs torch."""

import hashlib
from pathlib import Path

from pydantic import ValidationError

from bigtrain.checkpoint import catalog
from bigtrain.checkpoint.catalog import Checkpoint
from bigtrain.checkpoint.places import is_local
from bigtrain.config import Config, ModelConfig, load_config
from bigtrain.config.tasks import FinetuneConfig
from bigtrain.data.tokenizer import Tokenizer, load_tokenizer
from bigtrain.errors import CheckpointError, ConversionError

MODEL_FILE = "model.yaml"
"""What a model from Hugging Face has in the place of a run's `config.yaml`: the sections that a run extends."""


def run_folder(checkpoint: Checkpoint, given: Path) -> Path | None:
    """The folder of the run that wrote the checkpoint, or of the conversion: what was `given`, or where the checkpoint
    lies inside it."""
    if _is_run(given):
        return given
    if not is_local(checkpoint.path):
        return None
    run = checkpoint.path.resolve().parent.parent
    return run if _is_run(run) else None


def _is_run(folder: Path) -> bool:
    return (folder / "config.yaml").is_file() or (folder / MODEL_FILE).is_file()


def run_config(run: Path | None) -> Config | None:
    """The configuration of a run, if its folder is known.

    Raises:
        ConfigError: Its `config.yaml` cannot be understood.
    """
    return load_config(run / "config.yaml") if run is not None and (run / "config.yaml").is_file() else None


def task_of(run: Path | None) -> FinetuneConfig | None:
    """What a run was fine-tuned for, where that gave its model another head.

    Raises:
        ConfigError: Its `config.yaml` cannot be understood.
    """
    config = run_config(run)
    if config is None or config.finetune.task in (None, "sequence_to_sequence"):
        return None
    return config.finetune


def model_config(checkpoint: Checkpoint) -> ModelConfig:
    """The model's shape, as the checkpoint's marker tells it.

    Raises:
        CheckpointError: The marker holds another model section than this version knows.
    """
    try:
        return ModelConfig.model_validate(checkpoint.model)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in ("model", *first["loc"]))
        raise CheckpointError(f"{checkpoint.path / catalog.MARKER}: {key}: {first['msg']}") from None


def digest_of(checkpoint: Checkpoint) -> str:
    """SHA-256 of a checkpoint's marker and of its list of boxes, which holds the checksum of each, in hexadecimal."""
    names = (catalog.METADATA, catalog.MARKER)
    return hashlib.sha256(b"".join((checkpoint.path / name).read_bytes() for name in names)).hexdigest()


def find_tokenizer(run: Path | None, given: Path | None, model: ModelConfig) -> Tokenizer:
    """The tokenizer of a model: the copy in the run's folder, or the one given where there is none.

    Args:
        run: The run's folder.
        given: A tokenizer's file or folder; where the run has a copy it must be the same.
        model: The model's shape.

    Raises:
        ConversionError: There is neither, they differ, or the model has fewer rows than the tokenizer tokens.
        DataError: One cannot be read.
    """
    own = run / "tokenizer" if run is not None and (run / "tokenizer").is_dir() else None
    if own is None and given is None:
        raise ConversionError(
            "the checkpoint does not lie in a run's folder with a tokenizer/ in it; "
            "name the tokenizer that made its data (--tokenizer)"
        )
    found = load_tokenizer(own or given)  # type: ignore[arg-type]  # one of them is there
    if own is not None and given is not None and load_tokenizer(given).fingerprint != found.fingerprint:
        raise ConversionError(f"{given} is not the tokenizer that the model was trained with, {found.path}")
    if found.vocab_size > model.vocab_size:
        raise ConversionError(
            f"{found.path} has {found.vocab_size} tokens and the model only {model.vocab_size} (model.vocab_size): "
            "it was trained with another tokenizer"
        )
    return found
