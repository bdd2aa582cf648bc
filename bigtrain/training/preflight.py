"""What must hold before the first step and only files can tell: output, data, tokenizer, checkpoint.

Nothing here needs torch: the launcher looks before it starts any process.
"""

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigtrain.checkpoint import catalog
from bigtrain.checkpoint.places import checkpoint_folder, is_local
from bigtrain.config import Config
from bigtrain.data.manifest import by_column
from bigtrain.data.samples import Samples
from bigtrain.data.shards import TokenDataset, check_tokenizer, open_dataset
from bigtrain.data.tokenizer import load_tokenizer
from bigtrain.errors import CheckpointError, ConfigError, DataError

_CHANGEABLE = {"hidden_dropout", "attention_dropout", "initializer_range"}
"""Options of the model that may be changed midway: the weights mean the same."""


@dataclass(frozen=True)
class Inputs:
    """What a run reads."""

    train: Samples
    validation: Samples | None
    checkpoint: catalog.Checkpoint | None
    data_identity: dict[str, Any]
    """What decides which samples a position means; a checkpoint records it."""


def preflight(config: Config) -> Inputs:
    """Make the run's folder, and open and check everything that the run reads; needs neither torch nor peers.

    Raises:
        UserError: Naming the key or file and what would be right.
    """
    _check_output(Path(config.training.output_dir))
    if config.checkpoint.dir is not None:
        _check_checkpoint_dir(checkpoint_folder(config))
    return open_inputs(config)


def open_inputs(config: Config) -> Inputs:
    """Open and check everything that the run reads.

    Raises:
        UserError: Naming the key or file and what would be right.
    """
    training = config.training
    train = _open(config, "data.train", config.data.train)
    samples = Samples(train, training.sequence_length, training.seed, config.data.shuffle)
    validation = None
    if config.data.validation is not None:
        held_out = _open(config, "data.validation", config.data.validation)
        if held_out.manifest.tokenizer.fingerprint != train.manifest.tokenizer.fingerprint:
            raise DataError(
                f"data.validation: {held_out.path} was made with another tokenizer than data.train ({train.path}); "
                f"prepare it again with {train.path / train.manifest.tokenizer.file}"
            )
        validation = Samples(held_out, training.sequence_length, shuffle=False)
    identity = {
        "train": _fingerprint(train),
        "sequence_length": training.sequence_length,
        "seed": training.seed,
        "shuffle": config.data.shuffle,
    }
    return Inputs(samples, validation, _checkpoint(config, identity), identity)


def _check_output(output_dir: Path) -> None:
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output_dir):
            pass
    except OSError as error:
        raise ConfigError(f"training.output_dir {output_dir} cannot be written: {error.strerror}") from None


def _check_checkpoint_dir(folder: Path) -> None:
    """Try to write there: else it would be known at the first checkpoint, hours later."""
    probe = folder / f".probe-{os.getpid()}"
    try:
        if is_local(folder):
            folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except Exception as error:  # each kind of storage has its own
        raise ConfigError(f"checkpoint.dir {folder} cannot be written: {error}") from None


def _open(config: Config, key: str, path: str) -> TokenDataset:
    try:
        dataset = open_dataset(path)
    except DataError as error:
        raise DataError(f"{key}: {error}") from None
    if config.tokenizer.path is not None:
        check_tokenizer(dataset, load_tokenizer(config.tokenizer.path))
    vocabulary = dataset.manifest.tokenizer.vocab_size
    if vocabulary > config.model.vocab_size:
        raise ConfigError(
            f"model.vocab_size ({config.model.vocab_size}) is below the {vocabulary} tokens of the tokenizer "
            f"that made {path} ({key}); {-(-vocabulary // 128) * 128} would fit"
        )
    return dataset


def _fingerprint(dataset: TokenDataset) -> str:
    digest = hashlib.sha256()
    for sha256 in by_column(dataset.manifest.shards).sha256:
        digest.update(sha256.encode())
    return digest.hexdigest()


def _checkpoint(config: Config, identity: dict[str, Any]) -> catalog.Checkpoint | None:
    folder = checkpoint_folder(config)
    found = catalog.newest(folder)
    if found is None:
        return None
    if not config.checkpoint.resume:
        raise CheckpointError(
            f"{folder} holds checkpoints of an earlier run and checkpoint.resume is false; "
            "set it to true, or choose another training.output_dir (and checkpoint.dir, where it is set)"
        )
    defaults = {name: field.default for name, field in type(config.model).model_fields.items()}  # of newer options
    model = config.model.model_dump(mode="json", exclude=_CHANGEABLE)
    _same(found, "model", {**defaults, **found.model}, model)
    _same(found, "data", found.data, identity)
    if found.state.step > config.training.steps:
        raise CheckpointError(
            f"{found.path} is at step {found.state.step}, beyond training.steps ({config.training.steps})"
        )
    return found


def _same(checkpoint: catalog.Checkpoint, section: str, stored: dict[str, Any], now: dict[str, Any]) -> None:
    keys = {"train": "data.train (its contents)", "shuffle": "data.shuffle"}
    changed = [
        f"{keys.get(key, f'training.{key}') if section == 'data' else f'{section}.{key}'} "
        f"was {stored.get(key)!r} and is {value!r}"
        for key, value in now.items()
        if stored.get(key) != value
    ]
    if changed:
        raise CheckpointError(
            f"{checkpoint.path} cannot be resumed with this configuration: {'; '.join(changed)}. "
            "Set it back, or choose another training.output_dir (and checkpoint.dir, where it is set) to start anew"
        )
