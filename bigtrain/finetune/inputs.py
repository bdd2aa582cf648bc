"""What fine-tuning reads: the files, the labels, the tokenizer, the weights to begin with. Nothing here needs torch."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bigtrain.checkpoint.catalog import Checkpoint
from bigtrain.checkpoint.find import find_best
from bigtrain.config import Config
from bigtrain.convert.source import find_tokenizer, run_folder
from bigtrain.data.examples import Example, Examples, check_labels, labels_of, read_examples
from bigtrain.data.held_out import is_held_out
from bigtrain.data.tokenizer import Tokenizer, load_tokenizer
from bigtrain.errors import ConfigError, DataError
from bigtrain.finetune.encode import Encoded, Encoder, balanced
from bigtrain.finetune.load import BEGIN, of_key
from bigtrain.training.beginning import begins_in
from bigtrain.training.resume import check_whole, checkpoint_to_resume


@dataclass(frozen=True)
class TaskInputs:
    """What a run of fine-tuning reads. See :class:`bigtrain.training.inputs.RunInputs`."""

    train: Encoded
    validation: Encoded | None
    labels: list[str]
    """All classes or tags, in order."""
    tokenizer: Tokenizer
    checkpoint: Checkpoint | None
    initial: Checkpoint | None
    data_identity: dict[str, Any]

    def close(self) -> None:
        """Nothing is open."""

    def told(self) -> dict[str, Any]:
        """For the event of the start."""
        return {"examples": len(self.train.examples)}

    def notes(self) -> list[str]:
        """What the user must know of the examples."""
        return [*self.train.notes, *(self.validation.notes if self.validation else ())]


def open_task(config: Config) -> TaskInputs:
    """Read and check everything, and make the tokens.

    Raises:
        UserError: Naming the key or file and what would be right.
    """
    options = config.finetune
    with of_key(BEGIN):
        initial = find_best(begins_in(config)) if config.checkpoint.initialize_from else None
        if initial is not None:
            check_whole(initial)
    tokenizer = _tokenizer(config, initial)
    train, validation = read_both(config)
    labels = list(options.labels or labels_of(train))
    if options.task in ("classification", "tagging"):
        _check_classes(config, train, labels)
        if validation is not None:
            check_labels(validation, labels, "finetune.labels" if options.labels else str(train.path))
    encoder = Encoder(config, tokenizer, labels)
    weights = balanced(labels, train) if options.class_weights == "balanced" else None
    encoded = encoder.encode(train, weights)
    held_out = None if validation is None else encoder.encode(validation)
    identity = {
        "task": options.task,
        "examples": fingerprint(Path(options.train or "")),
        "labels": labels,
        "sequence_length": config.training.sequence_length,
        "seed": config.training.seed,
        **({} if options.classifier_pooling == "cls" else {"classifier_pooling": options.classifier_pooling}),
    }
    resumed = checkpoint_to_resume(config, identity)
    initial = None if resumed else initial
    return TaskInputs(encoded, held_out, labels, tokenizer, resumed, initial, identity)


def resolved(config: Config, inputs: TaskInputs) -> Config:
    """The configuration with what was found in the examples, and whoever uses the model needs."""
    found: dict[str, Any] = {}
    if config.finetune.task in ("classification", "tagging"):
        found["labels"] = inputs.labels
    if config.finetune.task == "question_answering" and config.finetune.unanswerable is None:
        found["unanswerable"] = any(example.answers == () for example in inputs.train.examples.examples)
    return config.model_copy(update={"finetune": config.finetune.model_copy(update=found)})


def _tokenizer(config: Config, initial: Checkpoint | None) -> Tokenizer:
    given = Path(config.tokenizer.path) if config.tokenizer.path else None
    if initial is not None:
        run = run_folder(initial, Path(config.checkpoint.initialize_from or ""))
        return find_tokenizer(run, given, config.model)
    if given is None:
        raise ConfigError(f"tokenizer.path is missing: with random weights (no {BEGIN}) no run's folder has one")
    found = load_tokenizer(given)
    if found.vocab_size > config.model.vocab_size:
        raise ConfigError(
            f"model.vocab_size ({config.model.vocab_size}) is below the {found.vocab_size} tokens of {found.path}"
        )
    return found


def read_both(config: Config) -> tuple[Examples, Examples | None]:
    """Examples to train on, and those held out.

    Raises:
        DataError: A file cannot be read, or nothing is left of it.
    """
    options = config.finetune
    assert options.task is not None, "the configuration was validated"
    assert options.train is not None, "the configuration was validated"
    with of_key("finetune.train"):
        train = read_examples(Path(options.train), options.task, options.columns)
    if options.validation is not None:
        with of_key("finetune.validation"):
            return train, read_examples(Path(options.validation), options.task, options.columns)
    if not options.validation_fraction:
        return train, None
    sides: tuple[list[Any], list[Any]] = [], []
    for example in train.examples:
        sides[is_held_out(_said_first(example), options.validation_fraction)].append(example)
    if not all(sides):
        raise DataError(
            f"{train.path}: finetune.validation_fraction ({options.validation_fraction}) of its {len(train)} examples "
            "leaves one side without any"
        )
    return replace(train, examples=sides[0]), Examples(train.path, sides[1])


def _said_first(example: Example) -> str:
    """The text by which an example is held out; of a conversation the first question, which others may begin with."""
    asked = [message["content"] for message in example.messages if message["role"] != "system"]
    return asked[0] if asked else example.text or " ".join(example.tokens)


def _check_classes(config: Config, train: Examples, labels: list[str]) -> None:
    occur = set(labels_of(train))
    if len(labels) < 2:
        raise DataError(f"{train.path}: all examples have the same label, {labels[0]!r}: there is nothing to learn")
    missing = [label for label in labels if label not in occur]
    if missing and config.finetune.task == "classification":
        raise DataError(
            f"{train.path}: no example has the label {', '.join(map(repr, missing))} of finetune.labels, which could "
            "never be learned; leave it out, or give examples"
        )
    check_labels(train, labels, "finetune.labels")


def fingerprint(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
