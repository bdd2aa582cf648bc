"""What tiktoken's rank files say, and what they leave to others to say.

A rank file has a line for each token: its bytes in base64, a space and its rank, which is its id. It names neither
the pattern that cuts a text before pairs of tokens are merged nor any special token. Both come from a
`tokenizer_config.json` beside it:

    {"encoding": "llama3"}
    {"pattern": "\\\\p{N}| ?\\\\p{L}+|…", "special_tokens": {"<|endoftext|>": 50256}, "eos_token": "<|endoftext|>"}

where `encoding` is one of `ENCODINGS`; or from the file's name, if it is one of those: `cl100k_base.tiktoken`.
`special_tokens` beside a known encoding are added to its own.
"""

import base64
import binascii
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tiktoken

from bigtrain.errors import DataError

WHOLE = ".tiktoken.json"
"""End of the name of a file that holds everything: see `Definition.whole`."""

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+"
_PUNCTUATION = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_GPT4 = rf"{_WORD}|\p{{N}}{{1,3}}|{_PUNCTUATION}|\s+(?![\s\S])|{_SPACES}"
"""As `tiktoken` 0.14 has it: white space at a text's end stays together, which Llama 3's pattern lets fall apart."""
_LLAMA3 = rf"{_WORD}|\p{{N}}{{1,3}}|{_PUNCTUATION}|{_SPACES}"
_QWEN = rf"{_WORD}|\p{{N}}|{_PUNCTUATION}|{_SPACES}"
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+{_CONTRACTIONS}?|"
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*{_CONTRACTIONS}?|"
    rf"\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
_FIM = ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>")
_RESERVED = [f"<|reserved_special_token_{i}|>" for i in range(251)]
_LLAMA3_SPECIAL = [
    *("<|begin_of_text|>", "<|end_of_text|>", *_RESERVED[:4], "<|start_header_id|>", "<|end_header_id|>"),
    *(_RESERVED[4], "<|eot_id|>", *_RESERVED[5:]),
]
_QWEN_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205))]
ENCODINGS: dict[str, tuple[str, dict[str, int]]] = {
    "r50k_base": (_GPT2, {"<|endoftext|>": 50256}),
    "p50k_base": (_GPT2, {"<|endoftext|>": 50256}),
    "cl100k_base": (
        _GPT4,
        {"<|endoftext|>": 100257, **{name: 100258 + i for i, name in enumerate(_FIM)}, "<|endofprompt|>": 100276},
    ),
    "o200k_base": (_GPT4O, {"<|endoftext|>": 199999, "<|endofprompt|>": 200018}),
    "llama3": (_LLAMA3, {name: 128000 + i for i, name in enumerate(_LLAMA3_SPECIAL)}),
    "qwen": (_QWEN, {name: 151643 + i for i, name in enumerate(_QWEN_SPECIAL)}),
}
"""Pattern and special tokens of known files: `tiktoken`'s own, Llama 3's and Qwen's. The patterns cut as those of their
makers and are written without possessive quantifiers, which `tokenizers` reads otherwise."""

_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\s*$")
_LONGEST_SPACE = 2**18
"""Characters of white space in a row that `tiktoken` is given at most: at a million it panics ("StackOverflow")."""
_SPACE = re.compile(r"\s+")


@dataclass(frozen=True)
class Definition:
    """A whole tokenizer."""

    ranks: dict[bytes, int]
    pattern: str
    """Regular expression: its matches, one after the other, are the pieces that tokens do not cross."""
    special_tokens: dict[str, int]
    eos_token: str | None
    """None: the usual names are looked for."""

    def whole(self) -> bytes:
        """All of it as one JSON object; equal definitions, equal bytes. `ranks` is a string, as a rank file has it."""
        return json.dumps(
            {
                "pattern": self.pattern,
                "special_tokens": dict(sorted(self.special_tokens.items(), key=lambda item: item[1])),
                "eos_token": self.eos_token,
                "ranks": "".join(
                    f"{base64.b64encode(token).decode()} {rank}\n"
                    for token, rank in sorted(self.ranks.items(), key=lambda item: item[1])
                ),
            },
            indent=1,
        ).encode()

    def encoding(self) -> tiktoken.Encoding:
        """What encodes and decodes. Raises ValueError if the pattern is no regular expression."""
        return tiktoken.Encoding(
            "", pat_str=self.pattern, mergeable_ranks=self.ranks, special_tokens=self.special_tokens
        )


def are_in(path: Path) -> bool:
    """Whether a file is one of ranks, whatever its name (Llama 3's is `tokenizer.model`)."""
    if path.suffix == ".tiktoken":
        return True
    try:
        with path.open("rb") as file:
            return bool(_LINE.match(file.readline(1024)))
    except OSError:
        return False


def parse(path: Path, content: bytes, config: dict[str, Any]) -> Definition:
    """The tokenizer in a rank file. `config`: what the `tokenizer_config.json` beside it says.

    Raises:
        DataError: a line is no rank, a byte has none, or nothing says what the pattern is.
    """
    name = config.get("encoding", path.stem if path.stem in ENCODINGS else None)
    if name is not None and name not in ENCODINGS:
        raise DataError(f"{path}: encoding {name!r} is not known; known are {', '.join(ENCODINGS)}")
    pattern, special_tokens = ENCODINGS[name] if name is not None else (None, {})
    pattern = config.get("pattern", pattern)
    if not isinstance(pattern, str):
        raise DataError(
            f"{path}: a tiktoken file does not say how text is cut; say it in a tokenizer_config.json beside it: "
            '{"encoding": NAME} or {"pattern": REGEX, "special_tokens": {"<|endoftext|>": ID}}, '
            f"where NAME is one of {', '.join(ENCODINGS)}"
        )
    given = config.get("special_tokens", {})
    if not isinstance(given, dict) or not all(isinstance(i, int) and i >= 0 for i in given.values()):
        raise DataError(f"{path}: special_tokens of its tokenizer_config.json is not an object of names and ids")
    return _checked(path, Definition(_ranks(path, content), pattern, {**special_tokens, **given}, eos_token(config)))


def parse_whole(path: Path, content: bytes) -> Definition:
    """What `Definition.whole` wrote. Raises DataError if it is anything else."""
    try:
        found = json.loads(content)
        ranks = found["ranks"].encode()
        definition = Definition(_ranks(path, ranks), found["pattern"], found["special_tokens"], found["eos_token"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not a tiktoken tokenizer in one file ({error})") from error
    return _checked(path, definition)


def eos_token(config: dict[str, Any]) -> str | None:
    """The end-of-document token that a `tokenizer_config.json` names, if it does."""
    token = config.get("eos_token")
    return token.get("content") if isinstance(token, dict) else token


def encodable(text: str) -> Iterator[str]:
    """The text in parts that `tiktoken` can encode: whole, but for white space of hundreds of thousands of characters
    in a row, which no encoding is known of."""
    start = 0
    for run in _SPACE.finditer(text) if len(text) > _LONGEST_SPACE else ():
        for cut in range(run.start() + _LONGEST_SPACE, run.end(), _LONGEST_SPACE):
            yield text[start:cut]
            start = cut
    yield text[start:]


def _ranks(path: Path, content: bytes) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(content.splitlines(), 1):
        if not line:
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise DataError(f"{path}: line {number} is not a token in base64, a space and its rank") from error
    return ranks


def _checked(path: Path, definition: Definition) -> Definition:
    """Raises DataError for what would make `tiktoken` panic."""
    missing = [byte for byte in range(256) if bytes([byte]) not in definition.ranks]
    if missing:
        raise DataError(f"{path}: not a tiktoken file: {len(missing)} of the 256 bytes have no rank")
    owners: dict[int, object] = {}
    for name, i in [*definition.ranks.items(), *definition.special_tokens.items()]:
        if i in owners:
            raise DataError(f"{path}: {owners[i]!r} and {name!r} have the same id {i}")
        owners[i] = name
    try:
        definition.encoding()
    except ValueError as error:
        raise DataError(f"{path}: its pattern is not a regular expression that tiktoken reads ({error})") from error
    return definition
