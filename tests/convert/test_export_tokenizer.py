"""Exported tokenizers against the tokenizers that made the data."""

import base64
import json
import shutil
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from random_models import LIBRARY
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from bigtrain.config import ModelConfig
from bigtrain.convert.tokenizer import export_tokenizer
from bigtrain.data.ranks import ENCODINGS
from bigtrain.data.tokenizer import Tokenizer, load_tokenizer
from bigtrain.prepare.train_tokenizer import train_byte_level, train_sentencepiece

TEXTS = [(LIBRARY / f"{name}.py").read_text(encoding="utf-8")[:20_000] for name in ("argparse", "ast", "heapq", "csv")]
AWKWARD = ["", "\n", " ", "  a\tb  ", "<s>a</s><unk><0x0A><|endoftext|>[BOS]", "naïve café", "日本語", "😀👩‍👩‍👧"]
MODEL = ModelConfig(vocab_size=700, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)


def byte_level(folder: Path) -> Path:
    """In the manner of GPT-2, but putting a token before every text, as Llama 3's does."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|endoftext|>", "[BOS]"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing("[BOS] $A", special_tokens=[("[BOS]", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def with_dummy_prefix(folder: Path) -> Path:
    """SentencePiece in the manner of Llama 2: a space before every text."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=500,
        model_type="bpe",
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        byte_fallback=True,
        max_sentence_length=100_000,
        minloglevel=2,
    )
    return folder / "tokenizer.model"


def own(folder: Path) -> Path:
    return train_sentencepiece(TEXTS, folder / "tokenizer.model", 600)


def ranks(folder: Path) -> Path:
    """A tiktoken file with a gap before its special tokens, as GPT-4's has."""
    trained = json.loads(train_byte_level(TEXTS, folder / "trained", 600).read_text())["model"]["vocab"]
    bytes_of = {letter: byte for byte, letter in bytes_to_unicode().items()}
    tokens = {bytes(bytes_of[letter] for letter in piece): rank for piece, rank in trained.items()}
    lines = [base64.b64encode(token) + b" %d\n" % rank for token, rank in tokens.items()]
    (folder / "own.tiktoken").write_bytes(b"".join(lines))
    special = {"<|endoftext|>": 650, "<|pad|>": 652}
    config = {"pattern": ENCODINGS["cl100k_base"][0], "special_tokens": special}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder / "own.tiktoken"


@pytest.fixture(scope="module", params=[own, with_dummy_prefix, byte_level, ranks], ids=lambda make: make.__name__)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Tokenizer, PreTrainedTokenizerFast]:
    """A tokenizer of ours, and the exported one as `transformers` loads it."""
    folder = tmp_path_factory.mktemp("tokenizers")
    tokenizer = load_tokenizer(request.param(folder))
    export_tokenizer(tokenizer, folder / "out", MODEL)
    return tokenizer, AutoTokenizer.from_pretrained(folder / "out")


def test_ids_and_text_are_the_same(pair: tuple[Tokenizer, PreTrainedTokenizerFast]) -> None:
    ours, exported = pair
    for text in [*TEXTS, *AWKWARD]:
        ids = ours.encode(text)
        assert exported(text, verbose=False)["input_ids"] == ids
        assert exported.decode(ids) == ours.decode(ids)
    assert exported.eos_token_id == exported.bos_token_id == ours.eos_id
    assert exported.model_max_length == MODEL.max_position_embeddings


@given(text=st.text().filter(lambda text: "\u2581" not in text))
def test_ids_of_any_text_are_the_same(pair: tuple[Tokenizer, PreTrainedTokenizerFast], text: str) -> None:
    assert pair[1](text)["input_ids"] == pair[0].encode(text)


def test_sentencepieces_own_file_lies_beside(tmp_path: Path) -> None:
    path = own(tmp_path)
    export_tokenizer(load_tokenizer(path), tmp_path / "out", MODEL)
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() == path.read_bytes()


def test_what_a_config_beside_it_names_is_the_end(tmp_path: Path) -> None:
    path = byte_level(tmp_path)
    shutil.copy(path, tmp_path / "copy.json")
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "[BOS]"}')
    export_tokenizer(load_tokenizer(path), tmp_path / "out", MODEL)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").eos_token == "[BOS]"
