"""Train tokenizers: SentencePiece's BPE and unigram; byte-level BPE, and BERT's WordPiece, as `tokenizer.json`.

All take the same texts and reserve the same kind of special tokens; all but WordPiece can give every text back.
"""

import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import sentencepiece
import tokenizers
from tokenizers import decoders, normalizers, pre_tokenizers, processors, trainers

from bigtrain.data.tokenizer import Tokenizer, load_tokenizer
from bigtrain.errors import DataError

TokenizerType = Literal["bpe", "unigram", "byte-bpe", "wordpiece"]
Normalization = Literal["none", "nfkc"]

END_OF_DOCUMENT = "<|endoftext|>"
"""Of byte-level BPE; SentencePiece's is `</s>`, WordPiece's `[SEP]`."""
BERT_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

_BLOCK_CHARACTERS = 4096
_TRAINING_THREADS = 4
"""A constant, not the machine's core count: the unigram trainer sums its threads' shares in floats."""

_WORDS = r"[^\r\n\p{L}\p{M}\p{N}]?[\p{L}\p{M}]+"
_OTHERS = r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""Where byte-level BPE cuts before it merges: a word with the character before it, then punctuation with the space
before it and the line ends after it, line ends with the space before them, and space but for the last before a word.
Marks belong to words, or the vowels of Hindi and the tones of Thai would be cut off."""

_ROLES = {"pad": "pad_token", "mask": "mask_token", "cls": "cls_token", "sep": "sep_token"}


def train_tokenizer(
    texts: Iterable[str],
    output: str | Path,
    vocab_size: int,
    tokenizer_type: TokenizerType = "bpe",
    *,
    special_tokens: Sequence[str] = (),
    byte_fallback: bool = True,
    split_digits: bool = True,
    normalization: Normalization = "none",
    lowercase: bool = False,
) -> Tokenizer:
    """Train a tokenizer of any type on `texts`, write it to `output` and load it.

    Options as in `train_sentencepiece`, `train_byte_level` and `train_wordpiece`; `output` is a file for the types of
    the first and a folder for the others.

    Raises:
        DataError: as these, and for "byte-bpe" without `byte_fallback`, which it is made of, and `lowercase` for
            another type than "wordpiece".
    """
    if tokenizer_type == "wordpiece":
        return load_tokenizer(
            train_wordpiece(
                texts,
                output,
                vocab_size,
                special_tokens=special_tokens,
                split_digits=split_digits,
                normalization=normalization,
                lowercase=lowercase,
            )
        )
    if lowercase:
        raise DataError(
            f"lowercase is for wordpiece; {tokenizer_type} can give every text back, which it could not then"
        )
    if tokenizer_type != "byte-bpe":
        path = train_sentencepiece(
            texts,
            output,
            vocab_size,
            tokenizer_type,
            special_tokens=special_tokens,
            byte_fallback=byte_fallback,
            split_digits=split_digits,
            normalization=normalization,
        )
        return load_tokenizer(path)
    if not byte_fallback:
        raise DataError("byte-bpe is made of bytes and cannot do without them; types bpe and unigram can")
    path = train_byte_level(
        texts,
        output,
        vocab_size,
        special_tokens=special_tokens,
        split_digits=split_digits,
        normalization=normalization,
    )
    return load_tokenizer(path)


def train_sentencepiece(
    texts: Iterable[str],
    output: str | Path,
    vocab_size: int,
    model_type: Literal["bpe", "unigram"] = "bpe",
    character_coverage: float = 0.9995,
    *,
    special_tokens: Sequence[str] = (),
    byte_fallback: bool = True,
    split_digits: bool = True,
    normalization: Normalization = "none",
) -> Path:
    """Train a SentencePiece model on `texts` and write it to the file `output`; returns that path.

    By default nothing is normalised: spaces, tabs and line ends are kept, digits stand alone, and a character that is
    not in the vocabulary becomes its UTF-8 bytes, so that `decode(encode(text)) == text`. Without `byte_fallback` it
    becomes `<unk>` and is lost. Ids: `<unk>` 0, `<s>` 1, `</s>` 2, then `special_tokens`, which no text is ever
    encoded to, then the 256 bytes. The same texts give the same file, on any machine.

    "bpe" is the type whose ids the Hugging Face tokenizer made from it reproduces exactly; that of
    "unigram" breaks ties between equally likely segmentations otherwise.

    Raises:
        DataError: the texts are too few for `vocab_size`, it is too small for their characters, a special token's name
            cannot be one, or `output` cannot be written.
    """
    _check_special_tokens(special_tokens, taken=("<unk>", "<s>", "</s>"))
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_blocks(texts),
            model_writer=model,
            vocab_size=vocab_size,
            model_type=model_type,
            character_coverage=character_coverage,
            normalization_rule_name={"none": "identity", "nfkc": "nfkc"}[normalization],
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            add_dummy_prefix=False,
            split_digits=split_digits,
            byte_fallback=byte_fallback,
            control_symbols=list(special_tokens),
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
    return _write(Path(output), model.getvalue())


def train_byte_level(
    texts: Iterable[str],
    output: str | Path,
    vocab_size: int,
    *,
    special_tokens: Sequence[str] = (),
    split_digits: bool = True,
    normalization: Normalization = "none",
) -> Path:
    """Train a byte-level BPE (GPT-2, Radford et al. 2019, section 2.2) on `texts` and write it into the folder
    `output`, as a `tokenizer.json` and a `tokenizer_config.json`; returns the former's path.

    `transformers.AutoTokenizer.from_pretrained(output)` loads it. The vocabulary is the 256 bytes, merges, and at its
    end `<|endoftext|>` and `special_tokens`, which no text is ever encoded to; `vocab_size` counts them all. With
    `split_digits` digits stand alone, else a number is cut as any word is.

    The same texts give the same file.

    Raises:
        DataError: the texts are too few for `vocab_size`, it is too small for the bytes, a special token's name cannot
            be one, or `output` cannot be written.
    """
    _check_special_tokens(special_tokens, taken=(END_OF_DOCUMENT,))
    special = [END_OF_DOCUMENT, *special_tokens]
    if vocab_size < 256 + len(special):
        raise DataError(
            f"vocab_size {vocab_size} is too small: the bytes and special tokens alone need {256 + len(special)}"
        )
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    if normalization == "nfkc":
        tokenizer.normalizer = normalizers.NFKC()
    pattern = tokenizers.Regex("|".join([_WORDS, r"\p{N}" if split_digits else r"\p{N}+", _OTHERS]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pattern, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_blocks(texts), trainer)
    learned = tokenizer.get_vocab_size()
    if learned == 256:
        raise DataError("the tokenizer cannot be trained: no text was given")
    if learned + len(special) < vocab_size:
        most = learned + len(special)
        raise DataError(f"vocab_size {vocab_size} is too large for the text given; it yields at most {most} pieces")
    for token in special:
        if tokenizer.token_to_id(token) is not None:
            raise DataError(f"the special token {token!r} is also a piece of the text; put it in brackets of some kind")
    tokenizer.add_special_tokens([tokenizers.AddedToken(token, normalized=False) for token in special])
    folder = Path(output)
    path = _write(folder / "tokenizer.json", tokenizer.to_str(pretty=True).encode())
    _write(folder / "tokenizer_config.json", json.dumps(_config(special_tokens), indent=2, ensure_ascii=False).encode())
    return path


def train_wordpiece(
    texts: Iterable[str],
    output: str | Path,
    vocab_size: int,
    *,
    special_tokens: Sequence[str] = (),
    split_digits: bool = True,
    normalization: Normalization = "none",
    lowercase: bool = False,
) -> Path:
    """Train BERT's kind of tokenizer (arXiv:1810.04805, section 3) on `texts` and write it into the folder `output`, as
    a `tokenizer.json` and a `tokenizer_config.json`; returns the former's path.

    `transformers.AutoTokenizer.from_pretrained(output)` loads it, and puts [CLS] and [SEP] around a text. White space
    only separates words, so that a text comes back without its own; with `lowercase` without capitals and accents, too.
    Ids: `BERT_TOKENS`, then `special_tokens`. A character that the texts did not have makes its word `[UNK]`.

    Raises:
        DataError: the texts are too few for `vocab_size`, it is too small for their characters, a special token's name
            cannot be one, or `output` cannot be written.
    """
    _check_special_tokens(special_tokens, taken=BERT_TOKENS)
    special = [*BERT_TOKENS, *special_tokens]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    bert = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), bert]) if normalization == "nfkc" else bert
    cuts = [pre_tokenizers.BertPreTokenizer()]
    if split_digits:
        cuts.append(pre_tokenizers.Digits(individual_digits=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    blocks = [*_blocks(texts)]
    # Given beforehand, for the trainer numbers these in the order in which it meets words, which is another every time.
    continuing = _continuing(blocks, tokenizer)
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=[*special, *continuing], show_progress=False
    )
    learner = tokenizers.Tokenizer.from_str(tokenizer.to_str())
    learner.train_from_iterator(blocks, trainer)
    tokenizer.model = tokenizers.models.WordPiece(vocab=learner.get_vocab(), unk_token="[UNK]")
    tokenizer.add_special_tokens([tokenizers.AddedToken(token, normalized=False) for token in special])
    learned = tokenizer.get_vocab_size()
    if not continuing:
        raise DataError("the tokenizer cannot be trained: no text was given")
    if learned < vocab_size:
        raise DataError(f"vocab_size {vocab_size} is too large for the text given; it yields at most {learned} pieces")
    if learned > vocab_size:
        raise DataError(
            f"vocab_size {vocab_size} is too small: special tokens and the text's characters alone need {learned}"
        )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    config = {
        "tokenizer_class": "BertTokenizerFast",
        "do_lower_case": lowercase,
        "clean_up_tokenization_spaces": False,
        **dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), BERT_TOKENS, strict=True)),
        "additional_special_tokens": [*special_tokens],
    }
    folder = Path(output)
    path = _write(folder / "tokenizer.json", tokenizer.to_str(pretty=True).encode())
    _write(folder / "tokenizer_config.json", json.dumps(config, indent=2, ensure_ascii=False).encode())
    return path


def _continuing(blocks: Sequence[str], tokenizer: tokenizers.Tokenizer) -> list[str]:
    """The pieces of one character that continue a word somewhere in `blocks`, sorted."""
    found: set[str] = set()
    for block in blocks:
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(block)):
            found.update(word[1:])
    return [f"##{character}" for character in sorted(found)]


def _config(special_tokens: Sequence[str]) -> dict[str, Any]:
    """What `transformers` is to know: the class, the tokens that have a role, and that text is to stay as it is."""
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_DOCUMENT,
        "eos_token": END_OF_DOCUMENT,
        "clean_up_tokenization_spaces": False,
    }
    others = []
    for token in special_tokens:
        role = _ROLES.get(re.sub(r"\W|_", "", token).lower().removesuffix("ding"))
        if role is None or role in config:
            others.append(token)
        else:
            config[role] = token
    return {**config, "additional_special_tokens": others}


def _check_special_tokens(special_tokens: Sequence[str], taken: Sequence[str]) -> None:
    seen = set(taken)
    for token in special_tokens:
        if token in seen:
            raise DataError(f"the special token {token!r} is there already")
        if not token.strip() or re.fullmatch("<0x[0-9A-F]{2}>", token):
            raise DataError(f"{token!r} cannot be a special token: it is blank, or the name of a byte")
        seen.add(token)


def _write(path: Path, content: bytes) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror})") from error
    return path


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
