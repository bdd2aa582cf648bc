"""One interface over SentencePiece models, Hugging Face `tokenizer.json` and tiktoken's rank files.

`encode` gives the ids of the text and nothing more: no `<s>`, no `</s>`, and what looks like a special
token in the text is text (a document that spells `</s>` cannot forge a document's end). The ids of special
tokens are had by name, from `special_tokens`. `docs/tokenizers.md` says which kinds give every text back.
"""

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import sentencepiece
import tokenizers

from bigtrain.data import ranks
from bigtrain.errors import DataError

_END_OF_DOCUMENT = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "<|im_end|>", "[EOS]", "[SEP]")
"""What known tokenizers call it, looked for in this order where no `tokenizer_config.json` names it."""

_SPACES = ("\u2581", "\u0120", "\u010a", " ")
"""How a piece spells the space before it: SentencePiece; byte-level BPE, and the line end; tiktoken."""


Span = tuple[int, int]
"""The first character, and the one after the last."""


class Vocabulary(Protocol):
    """What there is to know of token ids."""

    vocab_size: int
    """Every id is below it."""
    eos_id: int
    """The token that ends every document of a dataset."""
    special_tokens: dict[str, int]
    """The ids of tokens that stand for no text, by name: ends, masks, sentinels, markers of a chat."""

    def word_starts(self) -> np.ndarray:
        """Which tokens begin a word, as the vocabulary marks them: bool [vocab_size]. Special tokens do."""


class Tokenizer(Vocabulary, Protocol):
    """Text to token ids and back."""

    path: Path
    """The file it was read from."""
    fingerprint: str
    """SHA-256 of the copy that `copy_tokenizer` makes, in hexadecimal: equal fingerprints, equal ids."""

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, without special tokens."""

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """The ids of each of `texts`."""

    def encode_with_spans(self, text: str) -> tuple[list[int], list[Span]]:
        """The ids of `text`, and the characters that each stands for; a character may be shared by several."""

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
        ids = list(range(self.vocab_size))
        kinds = zip(self._processor.is_control(ids), self._processor.is_unknown(ids), strict=True)
        special = [i for i, kind in enumerate(kinds) if any(kind)]
        self.special_tokens: dict[str, int] = {self._processor.id_to_piece(i): i for i in special}

    def encode(self, text: str) -> list[int]:
        return self._processor.encode(text)

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return self._processor.encode(texts, num_threads=1)

    def encode_with_spans(self, text: str) -> tuple[list[int], list[Span]]:
        pieces = self._processor.encode(text, return_type="proto").pieces
        at = [place for place, char in enumerate(text) for _ in char.encode()]  # of each byte, which it counts in
        at.append(len(text))
        return [p.id for p in pieces], [(at[p.begin], at[max(p.end - 1, p.begin)] + (p.end > p.begin)) for p in pieces]

    def decode(self, ids: Sequence[int]) -> str:
        return self._processor.decode([int(i) for i in ids])

    def word_starts(self) -> np.ndarray:
        return _word_starts(self, {self._processor.id_to_piece(i): i for i in range(self.vocab_size)})


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
        self.eos_id = _find_eos(path, vocabulary, ranks.eos_token(_read_config(path)))
        added = self._tokenizer.get_added_tokens_decoder().items()
        self.special_tokens: dict[str, int] = {token.content: i for i, token in added}

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def encode_with_spans(self, text: str) -> tuple[list[int], list[Span]]:
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)

    def word_starts(self) -> np.ndarray:
        continuing = getattr(self._tokenizer.model, "continuing_subword_prefix", None)  # of WordPiece and some BPE
        return _word_starts(self, self._tokenizer.get_vocab(with_added_tokens=True), continuing)


class TiktokenTokenizer:
    """Ranks for the `tiktoken` package, with what a rank file does not say; see :mod:`bigtrain.data.ranks`.

    Read from a rank file and the `tokenizer_config.json` beside it, or from the one file in which
    `copy_tokenizer` puts both. See :class:`Tokenizer`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        content = _read(path)
        if path.name.endswith(ranks.WHOLE):
            self.definition = ranks.parse_whole(path, content)
        else:
            self.definition = ranks.parse(path, content, _read_config(path))
            content = self.definition.whole()
        self.fingerprint = hashlib.sha256(content).hexdigest()
        self._encoding = self.definition.encoding()
        self.vocab_size: int = self._encoding.max_token_value + 1
        self.special_tokens = self.definition.special_tokens
        self.eos_id = _find_eos(path, self.special_tokens, self.definition.eos_token)

    def encode(self, text: str) -> list[int]:
        return [i for part in ranks.encodable(text) for i in self._encoding.encode_ordinary(part)]

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def encode_with_spans(self, text: str) -> tuple[list[int], list[Span]]:
        ids = self.encode(text)
        _, begins = self._encoding.decode_with_offsets(ids)
        return ids, list(zip(begins, [*begins[1:], len(text)], strict=True))

    def decode(self, ids: Sequence[int]) -> str:
        return self._encoding.decode([int(i) for i in ids])

    def word_starts(self) -> np.ndarray:
        return _word_starts(self, {value.decode(errors="replace"): i for value, i in self.definition.ranks.items()})


_NAMES = ("tokenizer.json", "tokenizer.model", f"tokenizer{ranks.WHOLE}")


_BESIDE = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
    "spiece.model",
    "sentencepiece.bpe.model",
)
"""Files of a Hugging Face tokenizer that say more about it, and how its model likes to be asked; of T5 and XLM-RoBERTa
what it was made of, which its class may want to see."""


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer in a file, or in a folder that holds `tokenizer.json`, `tokenizer.model` or one `*.tiktoken`.

    Raises:
        DataError: nothing there, not a tokenizer, or without a token that ends a document.
    """
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in _NAMES if (path / name).is_file()] or sorted(path.glob("*.tiktoken"))
        if not found:
            raise DataError(f"{path}: holds neither tokenizer.json nor tokenizer.model nor a .tiktoken file")
        path = found[0]
    if path.name.endswith(ranks.WHOLE) or ranks.are_in(path):
        return TiktokenTokenizer(path)
    return HuggingFaceTokenizer(path) if path.suffix == ".json" else SentencePieceTokenizer(path)


def copy_tokenizer(tokenizer: Tokenizer, folder: Path) -> str:
    """Copy the tokenizer's file, and what lies beside it (the `tokenizer_config.json` that may name its end-of-document
    token, a chat template), into `folder`, where `load_tokenizer(folder)` finds it. Returns the file's name there."""
    if isinstance(tokenizer, TiktokenTokenizer):
        name = f"tokenizer{ranks.WHOLE}"
        (folder / name).write_bytes(tokenizer.definition.whole())
        return name
    is_json = isinstance(tokenizer, HuggingFaceTokenizer)
    name = "tokenizer.json" if is_json else "tokenizer.model"
    shutil.copyfile(tokenizer.path, folder / name)
    for beside in _BESIDE if is_json else ():
        if (file := tokenizer.path.with_name(beside)).is_file():
            shutil.copyfile(file, folder / beside)
    return name


def _read_config(path: Path) -> dict[str, Any]:
    """The `tokenizer_config.json` beside `path`; empty if there is none."""
    file = path.with_name("tokenizer_config.json")
    if not file.is_file():
        return {}
    try:
        config = json.loads(file.read_bytes())
    except ValueError as error:
        raise DataError(f"{file}: not a JSON object ({error})") from error
    if not isinstance(config, dict):
        raise DataError(f"{file}: not a JSON object")
    return config


def _find_eos(path: Path, vocabulary: dict[str, int], named: str | None) -> int:
    if named is not None:
        if named not in vocabulary:
            config = path.with_name("tokenizer_config.json")
            raise DataError(f"{config}: eos_token {named!r} is not in the vocabulary of {path.name}")
        return vocabulary[named]
    for token in _END_OF_DOCUMENT:
        if token in vocabulary:
            return vocabulary[token]
    raise DataError(
        f"{path}: no end-of-document token found (looked for {', '.join(_END_OF_DOCUMENT)}); "
        f'name it in a tokenizer_config.json beside it: {{"eos_token": "..."}}'
    )


def _word_starts(tokenizer: Tokenizer, vocabulary: dict[str, int], continuing: str | None = None) -> np.ndarray:
    """A piece begins a word unless it has the prefix of those that continue one; where none has such a prefix, if it
    has the space before it."""
    starts = np.zeros(tokenizer.vocab_size, dtype=bool)
    for piece, i in vocabulary.items():
        starts[i] = not piece.startswith(continuing) if continuing else piece.startswith(_SPACES)
    starts[[*tokenizer.special_tokens.values()]] = True
    return starts


def _read(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: the tokenizer cannot be read ({error.strerror})") from error
    if not content:
        raise DataError(f"{path}: the tokenizer's file is empty")
    return content
