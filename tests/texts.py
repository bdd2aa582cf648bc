"""A corpus that is on every machine, and small tokenizers of both kinds trained on it."""

import sysconfig
from pathlib import Path

import pytest
import tokenizers

from bigtrain.data.tokenizer import HuggingFaceTokenizer, SentencePieceTokenizer
from bigtrain.prepare.train_tokenizer import train_sentencepiece


@pytest.fixture(scope="session")
def sources() -> list[str]:
    """Some hundred thousand characters of Python source, a part of every module chosen."""
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    names = ["argparse", "ast", "bisect", "calendar", "csv", "heapq", "html/parser", "json/decoder", "textwrap", "this"]
    return [(stdlib / f"{name}.py").read_bytes().decode()[:20_000] for name in names]


@pytest.fixture(scope="session")
def bpe_path(sources: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_sentencepiece(sources, tmp_path_factory.mktemp("bpe") / "tokenizer.model", 700)


@pytest.fixture(scope="session")
def unigram_path(sources: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_sentencepiece(sources, tmp_path_factory.mktemp("unigram") / "tokenizer.model", 700, "unigram")


@pytest.fixture(scope="session")
def json_path(sources: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE in the manner of GPT-2, made by the `tokenizers` package."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|endoftext|>", "<|pad|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sources, trainer)
    path = tmp_path_factory.mktemp("json") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="session")
def bpe(bpe_path: Path) -> SentencePieceTokenizer:
    return SentencePieceTokenizer(bpe_path)


@pytest.fixture(scope="session")
def byte_level(json_path: Path) -> HuggingFaceTokenizer:
    return HuggingFaceTokenizer(json_path)
