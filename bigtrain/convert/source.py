"""What a conversion starts from: the checkpoint, the model's shape, the tokenizer. Nothing here needs torch."""

from pathlib import Path

from pydantic import ValidationError

from bigtrain.checkpoint import catalog
from bigtrain.checkpoint.catalog import Checkpoint
from bigtrain.checkpoint.places import checkpoint_folder, is_local
from bigtrain.config import Config, ModelConfig, load_config
from bigtrain.data.tokenizer import Tokenizer, load_tokenizer
from bigtrain.errors import CheckpointError, ConversionError


def find_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint that `path` means: the newest complete one of a run's folder or of its `checkpoints`
    folder, or the one in the step's folder itself.

    Raises:
        CheckpointError: There is none, or it is damaged.
    """
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such folder; give a run's folder or one of its checkpoints")
    if path.name.startswith("step-") or (path / catalog.MARKER).exists():
        return catalog.read(path)
    folder = _checkpoints(path)
    found = catalog.newest(folder)
    if found is None:
        unfinished = sorted(part.name for part in folder.glob("*step-*"))
        why = f" (incomplete: {', '.join(unfinished)})" if unfinished else ""
        raise CheckpointError(f"{folder} holds no complete checkpoint{why}; give a run's folder or one of its steps")
    return found


def _checkpoints(path: Path) -> Path:
    """Where the checkpoints of a run's folder lie; `path` itself, if it is none."""
    if (path / "checkpoints").is_dir():
        return path / "checkpoints"
    return checkpoint_folder(load_config(path / "config.yaml")) if (path / "config.yaml").is_file() else path


def run_folder(checkpoint: Checkpoint, given: Path) -> Path | None:
    """The folder of the run that wrote the checkpoint: what was `given`, or where the checkpoint lies inside it."""
    if (given / "config.yaml").is_file():
        return given
    if not is_local(checkpoint.path):
        return None
    run = checkpoint.path.resolve().parent.parent
    return run if (run / "config.yaml").is_file() else None


def run_config(run: Path | None) -> Config | None:
    """The configuration of a run, if its folder is known.

    Raises:
        ConfigError: Its `config.yaml` cannot be understood.
    """
    return None if run is None else load_config(run / "config.yaml")


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
