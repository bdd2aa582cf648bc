"""One interface over SentencePiece models and Hugging Face `tokenizer.json` files; training of the former.

`encode` gives the ids of the text and nothing more: no `<s>`, no `</s>`, and what looks like a special
token in the text is text (a document that spells `</s>` cannot forge a document's end).

A SentencePiece model trained here gives every text back exactly, with one exception that SentencePiece
itself makes: U+2581 `▁` is its sign for a space, so a `▁` in the text comes back as a space.
"""

import hashlib
import io
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, Protocol

import sentencepiece
import tokenizers

from bigtrain.errors import DataError

_END_OF_DOCUMENT = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "<|im_end|>", "[EOS]")
"""What known tokenizers call it, looked for in this order where no `tokenizer_config.json` names it."""

_BLOCK_CHARACTERS = 4096
_TRAINING_THREADS = 4
"""A constant, not the machine's core count: the unigram trainer sums its threads' shares in floats."""


class Tokenizer(Protocol):
    """Text to token ids and back."""

    path: Path
    """The file it was read from."""
    fingerprint: str
    """SHA-256 of that file, in hexadecimal: equal fingerprints, equal ids."""
    vocab_size: int
    """Every id is below it."""
    eos_id: int
    """The token that ends every document of a dataset."""

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, without special tokens."""

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """The ids of each of `texts`."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; special tokens are spelled out by Hugging Face tokenizers and silent in SentencePiece."""


class SentencePieceTokenizer:
    """A SentencePiece `.model` file. See :class:`Tokenizer`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        content = _read(path)
        self.fingerprint = hashlib.sha256(content).hexdigest()
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=content)
        except RuntimeError as error:
            raise DataError(f"{path}: not a SentencePiece model ({error})") from error
        self.vocab_size: int = self._processor.vocab_size()
        self.eos_id: int = self._processor.eos_id()
        if self.eos_id < 0:
            raise DataError(f"{path}: has no end-of-sentence piece, and every document must end with one")

    def encode(self, text: str) -> list[int]:
        return self._processor.encode(text)

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return self._processor.encode(texts, num_threads=1)

    def decode(self, ids: Sequence[int]) -> str:
        return self._processor.decode([int(i) for i in ids])


class HuggingFaceTokenizer:
    """A `tokenizer.json` file, read by the `tokenizers` package. See :class:`Tokenizer`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        content = _read(path)
        self.fingerprint = hashlib.sha256(content).hexdigest()
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(content.decode())
        except Exception as error:  # the package raises plain Exception
            raise DataError(f"{path}: not a Hugging Face tokenizer ({error})") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True  # their spelling in a text is text
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values()) + 1  # ids may have gaps
        self.eos_id = _find_eos(path, vocabulary)

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer in a file, or in a folder that holds `tokenizer.json` or else `tokenizer.model`.

    Raises:
        DataError: nothing there, not a tokenizer, or without a token that ends a document.
    """
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in ("tokenizer.json", "tokenizer.model") if (path / name).is_file()]
        if not found:
            raise DataError(f"{path}: holds neither tokenizer.json nor tokenizer.model")
        path = found[0]
    return HuggingFaceTokenizer(path) if path.suffix == ".json" else SentencePieceTokenizer(path)


def copy_tokenizer(tokenizer: Tokenizer, folder: Path) -> str:
    """Copy the tokenizer's file, and the `tokenizer_config.json` beside it that may name its
    end-of-document token, into `folder`, where `load_tokenizer(folder)` finds it. Returns the file's name there."""
    is_json = isinstance(tokenizer, HuggingFaceTokenizer)
    name = "tokenizer.json" if is_json else "tokenizer.model"
    shutil.copyfile(tokenizer.path, folder / name)
    config = tokenizer.path.with_name("tokenizer_config.json")
    if is_json and config.is_file():
        shutil.copyfile(config, folder / config.name)
    return name


def train_sentencepiece(
    texts: Iterable[str],
    output: str | Path,
    vocab_size: int,
    model_type: Literal["bpe", "unigram"] = "bpe",
    character_coverage: float = 0.9995,
) -> Path:
    """Train a SentencePiece model on `texts` and write it to the file `output`; returns that path.

    Nothing is normalised: spaces, tabs and line ends are kept, digits stand alone, and a character that is
    not in the vocabulary becomes its UTF-8 bytes, so that `decode(encode(text)) == text`. Ids: `<unk>` 0,
    `<s>` 1, `</s>` 2, then the 256 bytes. The same texts give the same file, on any machine.

    "bpe" is the type whose ids the Hugging Face tokenizer made from it reproduces exactly; that of
    "unigram" breaks ties between equally likely segmentations otherwise.

    Raises:
        DataError: the texts are too few for `vocab_size`, it is too small for their characters, or
            `output` cannot be written.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_blocks(texts),
            model_writer=model,
            vocab_size=vocab_size,
            model_type=model_type,
            character_coverage=character_coverage,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            add_dummy_prefix=False,
            split_digits=True,
            byte_fallback=True,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            max_sentence_length=2 * _BLOCK_CHARACTERS * 4,  # bytes; a longer one would be left out silently
            num_threads=_TRAINING_THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise DataError(_training_failure(vocab_size, str(error))) from error
    output = Path(output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_bytes(model.getvalue())
    except OSError as error:
        raise DataError(f"{output}: cannot be written ({error.strerror})") from error
    return output


def _blocks(texts: Iterable[str]) -> Iterator[str]:
    """The texts in blocks of whole lines: SentencePiece trains on "sentences" of bounded length."""
    for text in texts:
        block = ""
        for line in text.splitlines(keepends=True):
            for start in range(0, len(line), _BLOCK_CHARACTERS):
                block += line[start : start + _BLOCK_CHARACTERS]
                if len(block) >= _BLOCK_CHARACTERS:
                    yield block
                    block = ""
        if block:
            yield block


def _training_failure(vocab_size: int, reason: str) -> str:
    if match := re.search(r"set it to a value <= (\d+)", reason):
        return f"vocab_size {vocab_size} is too large for the text given; it yields at most {match[1]} pieces"
    if match := re.search(r"required_chars\. \d+ vs (\d+)", reason):
        return f"vocab_size {vocab_size} is too small: the bytes and the text's characters alone need {match[1]}"
    if "sentences_.empty()" in reason:
        return "the tokenizer cannot be trained: no text was given"
    return f"the tokenizer cannot be trained with vocab_size {vocab_size}: {reason}"


def _find_eos(path: Path, vocabulary: dict[str, int]) -> int:
    config = path.with_name("tokenizer_config.json")
    if config.is_file():
        try:
            token = json.loads(config.read_bytes()).get("eos_token")
        except (ValueError, AttributeError) as error:
            raise DataError(f"{config}: not a JSON object ({error})") from error
        if isinstance(token, dict):
            token = token.get("content")
        if token is not None:
            if token not in vocabulary:
                raise DataError(f"{config}: eos_token {token!r} is not in the vocabulary of {path.name}")
            return vocabulary[token]
    for token in _END_OF_DOCUMENT:
        if token in vocabulary:
            return vocabulary[token]
    raise DataError(
        f"{path}: no end-of-document token found (looked for {', '.join(_END_OF_DOCUMENT)}); "
        f'name it in a tokenizer_config.json beside it: {{"eos_token": "..."}}'
    )


def _read(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: the tokenizer cannot be read ({error.strerror})") from error
    if not content:
        raise DataError(f"{path}: the tokenizer's file is empty")
    return content
