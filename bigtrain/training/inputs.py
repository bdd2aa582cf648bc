"""What a run reads: its datasets in the order of its positions, and the checkpoint it goes on from.

Nothing here needs torch: the launcher opens everything before it starts any process.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from bigtrain.checkpoint import catalog
from bigtrain.config import Config
from bigtrain.data.cache import Cache, default_folder
from bigtrain.data.fill import FillInTheMiddle
from bigtrain.data.manifest import by_column
from bigtrain.data.masked import MaskedSamples, content_length
from bigtrain.data.mixture import Mixture
from bigtrain.data.pairs import Pairs, pair_lengths
from bigtrain.data.samples import Samples, TokenSource
from bigtrain.data.shards import TokenDataset, check_tokenizer, open_dataset
from bigtrain.data.shares import stages_of
from bigtrain.data.tokenizer import Tokenizer, Vocabulary, load_tokenizer
from bigtrain.errors import ConfigError, DataError
from bigtrain.training.resume import checkpoint_to_begin_with, checkpoint_to_resume

REMOTE_SHUFFLE_WINDOW = 2**28
"""Tokens shuffled together where a dataset lies behind a URL and `data.shuffle_window` says nothing."""


class RunInputs(Protocol):
    """What every run reads, whatever it trains for."""

    @property
    def checkpoint(self) -> catalog.Checkpoint | None:
        """To go on from."""

    @property
    def initial(self) -> catalog.Checkpoint | None:
        """Whose weights a new run begins with."""

    @property
    def data_identity(self) -> dict[str, Any]:
        """What decides which samples a position means; a checkpoint records it."""

    @property
    def tokenizer(self) -> Tokenizer:
        """That made the tokens."""

    def told(self) -> dict[str, Any]:
        """What the event of the start tells of it."""

    def notes(self) -> list[str]:
        """What the user must know of it."""

    def close(self) -> None:
        """Let go of what is open."""


@dataclass(frozen=True)
class Inputs:
    """What a run of pretraining reads. Rank 0 opens it and sends it to the others, which open shards when they need
    them. See :class:`RunInputs`."""

    train: Samples | Mixture
    """The samples by position."""
    reads: TokenSource | MaskedSamples | Pairs
    """The same, as the run's objective makes them."""
    validation: Samples | None
    reads_validation: TokenSource | MaskedSamples | Pairs | None
    checkpoint: catalog.Checkpoint | None
    """What the run goes on from."""
    initial: catalog.Checkpoint | None
    """Whose weights it begins with, where it goes on from none."""
    data_identity: dict[str, Any]
    """What decides which samples a position means; a checkpoint records it."""

    @property
    def tokenizer(self) -> Tokenizer:
        """That of all datasets."""
        return first_source(self.train).dataset.load_tokenizer()

    def told(self) -> dict[str, Any]:
        """Tokens of the datasets that are in no sample."""
        if isinstance(self.train, Mixture):
            return {"tokens_left_out": {name: s.cut.tokens_left_out() for name, s in self.train.sources.items()}}
        return {"tokens_left_out": self.train.cut.tokens_left_out()}

    def notes(self) -> list[str]:
        """None."""
        return []

    def close(self) -> None:
        """End the threads that fetch ahead."""
        sources = self.train.sources.values() if isinstance(self.train, Mixture) else [self.train]
        for samples in [*sources, *([self.validation] if self.validation else [])]:
            samples.dataset.close()


def first_source(train: Samples | Mixture) -> Samples:
    """The one source, or the first of a mixture, whose tokenizer is that of all."""
    return next(iter(train.sources.values())) if isinstance(train, Mixture) else train


def open_inputs(config: Config) -> Inputs:
    """Open and check everything that the run reads.

    Raises:
        UserError: Naming the key or file and what would be right.
    """
    train = open_train(config)
    validation = reads_validation = None
    if config.data.validation is not None:
        held_out = _open(config, "data.validation", config.data.validation)
        _check_same_tokenizer(held_out, "data.validation", first_source(train).dataset)
        packing = {"best_fit": "documents"}.get(_packing(config), _packing(config))
        validation = Samples(held_out, sample_length(config), shuffle=False, packing=packing)
        reads_validation = as_trained(config, validation, held_out.load_tokenizer)
    identity = _identity(config, train)
    resumed = checkpoint_to_resume(config, identity)
    initial = None if resumed else checkpoint_to_begin_with(config)
    return Inputs(train, _with_objective(config, train), validation, reads_validation, resumed, initial, identity)


def open_train(config: Config) -> Samples | Mixture:
    """The training data alone.

    Raises:
        UserError: As :func:`open_inputs`.
    """
    if config.data.train is not None:
        return _samples(config, "data.train", config.data.train)
    sources = {
        name: _samples(config, f"data.sources.{name}.path", source.path) for name, source in config.data.sources.items()
    }
    (first_name, first), *others = sources.items()
    for name, samples in others:
        _check_same_tokenizer(samples.dataset, f"data.sources.{name}.path", first.dataset, f"data.sources.{first_name}")
    return Mixture(sources, stages_of(config, {name: samples.dataset.tokens for name, samples in sources.items()}))


def _with_objective(config: Config, train: Samples | Mixture) -> TokenSource | MaskedSamples | Pairs:
    data = config.data
    if not data.fim_rate:
        return as_trained(config, train, first_source(train).dataset.load_tokenizer)
    tokenizer = first_source(train).dataset.load_tokenizer()
    seed = config.training.seed
    return FillInTheMiddle(train, tokenizer, seed=seed, rate=data.fim_rate, spm_rate=data.fim_spm_rate)


def as_trained(
    config: Config, samples: TokenSource, load_vocabulary: Callable[[], Vocabulary]
) -> TokenSource | MaskedSamples | Pairs:
    """Samples with something hidden in them, for an architecture that learns from that.

    Raises:
        DataError: The tokenizer lacks a token that is needed.
    """
    if config.model.architecture == "gpt":
        return samples
    if config.model.architecture == "t5":
        return Pairs(samples, load_vocabulary(), config)
    return MaskedSamples(
        samples,
        load_vocabulary(),
        seed=config.training.seed,
        sequence_length=config.training.sequence_length,
        probability=config.data.mlm_probability,
        whole_words=config.data.whole_word_masking,
        sentence_objective=config.data.sentence_objective,
    )


def sample_length(config: Config) -> int:
    """Tokens of a sample but one, as a dataset is cut."""
    if config.model.architecture == "bert":
        return content_length(config.training.sequence_length, config.data.sentence_objective) - 1
    if config.model.architecture == "t5":
        return pair_lengths(config).sample - 1
    return config.training.sequence_length


def _packing(config: Config) -> str:
    """How a dataset is cut: a sample that holds its targets shares no token with the next one."""
    if config.model.architecture != "gpt" and config.data.packing == "contiguous":
        return "blocks"
    return config.data.packing


def _samples(config: Config, key: str, path: str) -> Samples:
    data = config.data
    dataset = _open(config, key, path)
    window = data.shuffle_window
    if window is None and dataset.is_remote:
        window = REMOTE_SHUFFLE_WINDOW
    length, packing = sample_length(config), _packing(config)
    return Samples(dataset, length, config.training.seed, data.shuffle, window=window, packing=packing)


def _cache(config: Config) -> Cache:
    """Where shards from URLs are kept."""
    folder = config.data.cache_dir
    return Cache(Path(folder).expanduser() if folder else default_folder(), config.data.cache_bytes)


def _open(config: Config, key: str, path: str) -> TokenDataset:
    try:
        dataset = open_dataset(path, _cache(config))
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


def _check_same_tokenizer(dataset: TokenDataset, key: str, other: TokenDataset, other_key: str = "data.train") -> None:
    if dataset.manifest.tokenizer.fingerprint != other.manifest.tokenizer.fingerprint:
        raise DataError(
            f"{key}: {dataset.path} was made with another tokenizer than {other_key} ({other.path}); "
            f"prepare it again with {other.path / other.manifest.tokenizer.file}"
        )


def _identity(config: Config, train: Samples | Mixture) -> dict[str, Any]:
    """Options at values that change nothing are left out, so that they can be added later."""
    found: dict[str, Any] = {
        "sequence_length": config.training.sequence_length,
        "seed": config.training.seed,
        "shuffle": config.data.shuffle,
    }
    if config.data.packing in ("best_fit", "padded"):
        found["packing"] = config.data.packing
    if config.model.architecture == "t5":
        found["objective"] = config.data.objective
    if config.data.sentence_objective != "none":
        found["sentence_objective"] = config.data.sentence_objective
    if isinstance(train, Samples):
        window = {"shuffle_window": train.window} if config.data.shuffle and train.window is not None else {}
        return {"train": _fingerprint(train.dataset), **found, **window}
    if config.data.shuffle and any(samples.window for samples in train.sources.values()):
        found["shuffle_window"] = {name: samples.window for name, samples in train.sources.items()}
    found["sources"] = {name: _fingerprint(samples.dataset) for name, samples in train.sources.items()}
    found["stages"] = [
        {
            "position": stage.first_position,
            "shares": {name: str(share) for name, share in stage.shares.items() if share},
        }
        for stage in train.stages
    ]
    return found


def _fingerprint(dataset: TokenDataset) -> str:
    digest = hashlib.sha256()
    for sha256 in by_column(dataset.manifest.shards).sha256:
        digest.update(sha256.encode())
    return digest.hexdigest()
