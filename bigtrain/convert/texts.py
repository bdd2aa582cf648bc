"""Real text for two models to read, as token ids."""

import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bigtrain.config import ModelConfig
from bigtrain.convert.source import run_config
from bigtrain.data.shards import check_tokenizer, open_dataset
from bigtrain.data.tokenizer import Tokenizer
from bigtrain.errors import DataError

SEQUENCES = 4
SEQUENCE_LENGTH = 256
_DOCUMENT_CHARACTERS = 20_000


@dataclass(frozen=True)
class Reading:
    """What both models read."""

    origin: str
    """Where the text comes from."""
    texts: Sequence[str]
    sequences: Sequence[Tensor]
    """int64 [1, s] each."""


def find_reading(model: ModelConfig, tokenizer: Tokenizer | None, given: Path | None, run: Path | None) -> Reading:
    """Up to four sequences of 256 tokens.

    Args:
        model: What is going to read them.
        tokenizer: The model's; without one the ids are the text's bytes.
        given: A text file; default: the run's validation data if it is there, else Python's standard library.
        run: The folder of the run.

    Raises:
        DataError: The text cannot be read, or is empty.
    """
    origin, texts = _texts(run, tokenizer, given)
    length = min(SEQUENCE_LENGTH, model.longest_sequence)
    if tokenizer is None:
        ids = [byte % model.vocab_size for text in texts for byte in text.encode()]
    else:
        ids = [i for tokens in tokenizer.encode_batch(texts) for i in [*tokens, tokenizer.eos_id]]
    if not texts:
        raise DataError(f"{origin}: holds no text to compare the models on")
    cuts = range(0, min(len(ids), SEQUENCES * length), length)
    return Reading(origin, texts, [torch.tensor([ids[start : start + length]]) for start in cuts])


def _texts(run: Path | None, tokenizer: Tokenizer | None, given: Path | None) -> tuple[str, list[str]]:
    if given is not None:
        try:
            return str(given), _enough(iter([given.read_text(encoding="utf-8")]), tokenizer)
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{given}: cannot be read as text ({error})") from None
    config = run_config(run)
    held_out = Path(config.data.validation) if config is not None and config.data.validation else None
    if held_out is not None and held_out.is_dir() and tokenizer is not None:
        return str(held_out), _enough(_documents(held_out, tokenizer), tokenizer)
    library = Path(sysconfig.get_paths()["stdlib"])
    sources = (path.read_text(encoding="utf-8", errors="replace") for path in sorted(library.glob("*.py")))
    return "the Python standard library's source", _enough(sources, tokenizer)


def _documents(path: Path, tokenizer: Tokenizer) -> Iterator[str]:
    dataset = open_dataset(path)
    check_tokenizer(dataset, tokenizer)
    for index in range(dataset.documents):
        yield tokenizer.decode(dataset.document(index).tokens[:-1].tolist())


def _enough(texts: Iterator[str], tokenizer: Tokenizer | None) -> list[str]:
    found: list[str] = []
    tokens = 0
    for text in texts:
        if not text:
            continue
        found.append(text[:_DOCUMENT_CHARACTERS])
        tokens += len(found[-1].encode() if tokenizer is None else tokenizer.encode(found[-1]))
        if tokens >= SEQUENCES * SEQUENCE_LENGTH:
            break
    return found
