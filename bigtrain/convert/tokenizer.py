"""A tokenizer as `transformers` reads it."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, pre_tokenizers, processors
from transformers import AutoTokenizer, LlamaTokenizerFast, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode, import_protobuf

from bigtrain.config import ModelConfig
from bigtrain.data.framing import Framing
from bigtrain.data.ranks import Definition
from bigtrain.data.tokenizer import (
    HuggingFaceTokenizer,
    SentencePieceTokenizer,
    TiktokenTokenizer,
    Tokenizer,
    copy_tokenizer,
)


def is_hugging_faces_own(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer came with a model of `transformers`, whose class for it lies beside it by name."""
    config = tokenizer.path.with_name("tokenizer_config.json")
    if not isinstance(tokenizer, HuggingFaceTokenizer) or not config.is_file():
        return False
    return "tokenizer_class" in json.loads(config.read_bytes())


def export_tokenizer(tokenizer: Tokenizer, folder: Path, model: ModelConfig, framing: Framing | None = None) -> None:
    """Write the files from which `AutoTokenizer` makes a tokenizer that gives the same ids.

    One that came from `transformers` goes there as it was, with its chat template. Any other, like ours, adds nothing
    to a text and takes nothing in it for a special token, and its token for a beginning is the one that ends
    documents: that is what stood before every document in training. With `framing` either puts around a text what
    stood there in training; and a BERT's and a T5's take special tokens in a text for these, for it is by their masks
    and sentinels that such models are asked.

    Raises:
        OSError: They cannot be written.
    """
    if is_hugging_faces_own(tokenizer):
        copy_tokenizer(tokenizer, folder)
    else:
        _export(tokenizer, folder, model)
    if framing is not None and not _frames(folder, framing):
        _put_frame(tokenizer, folder, framing, segments=model.architecture == "bert" and model.type_vocab_size > 1)
        if model.architecture != "gpt":
            _change_config(folder, {"split_special_tokens": False})


def _export(tokenizer: Tokenizer, folder: Path, model: ModelConfig) -> None:
    """One that is not of `transformers`."""
    is_sentencepiece = isinstance(tokenizer, SentencePieceTokenizer)
    if isinstance(tokenizer, TiktokenTokenizer):
        backend = _from_ranks(tokenizer.definition)
    else:
        backend = _from_sentencepiece(tokenizer.path) if is_sentencepiece else _from_json(tokenizer.path)
    end = backend.id_to_token(tokenizer.eos_id)
    exported = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=end,
        eos_token=end,
        model_max_length=model.max_position_embeddings,
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )
    try:
        exported.save_pretrained(folder)
    except Exception as error:
        if type(error) is not Exception:
            raise
        raise OSError(str(error)) from error  # as the tokenizers package tells that it cannot write
    if is_sentencepiece:  # not needed by transformers, but by llama.cpp's converter
        shutil.copyfile(tokenizer.path, folder / "tokenizer.model")


def padding_id(tokenizer: Tokenizer, framing: Framing) -> int | None:
    """What texts are filled up with in a batch, so that `transformers` finds the end of each; None: there is no token
    for it."""
    if framing.pad not in framing.end:
        return framing.pad
    return next((i for i in tokenizer.special_tokens.values() if i not in framing.end), None)


def _frames(folder: Path, framing: Framing) -> bool:
    """Whether the tokenizer in a folder puts around texts what should stand there."""
    exported = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    one, two = (exported(text, add_special_tokens=False)["input_ids"] for text in ("one", "two"))
    alone, together = exported("one")["input_ids"], exported("one", "two")["input_ids"]
    return alone == framing.around(one)[0] and together == framing.around(one, two)[0]


def _put_frame(tokenizer: Tokenizer, folder: Path, framing: Framing, *, segments: bool) -> None:
    """Have the tokenizer in a folder do so, whatever its class did before; with `segments` tell which text is which."""
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    begin, between, end = (
        [backend.id_to_token(i) for i in ids] for ids in (framing.begin, framing.between, framing.end)
    )
    around = sorted({*framing.begin, *framing.between, *framing.end})
    second = [f"{piece}:1" for piece in ("$B", *end)] if segments else ["$B", *end]
    backend.post_processor = processors.TemplateProcessing(
        single=[*begin, "$A", *end],
        pair=[*begin, "$A", *between, *second],
        special_tokens=[(backend.id_to_token(i), i) for i in around],
    )
    (folder / "tokenizer.json").write_text(backend.to_str(pretty=True), encoding="utf-8")
    roles = {"eos_token": end[0]}
    if begin:
        mask = next(name for name in ("[MASK]", "<mask>") if name in tokenizer.special_tokens)
        roles |= {"bos_token": begin[0], "cls_token": begin[0], "sep_token": end[0], "mask_token": mask}
    if (padding := padding_id(tokenizer, framing)) is not None:
        roles["pad_token"] = backend.id_to_token(padding)
    names = ["input_ids", *(["token_type_ids"] if segments else []), "attention_mask"]
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": None, "add_eos_token": None}
    config = _change_config(folder, {**kind, "model_input_names": names, **roles})
    taken = {config[key] for key in config if key.endswith("_token") and isinstance(config[key], str)}
    others = [name for name in tokenizer.special_tokens if name not in taken]
    _change_config(folder, {"additional_special_tokens": others})


def _change_config(folder: Path, changed: Mapping[str, Any]) -> dict[str, Any]:
    """The tokenizer's configuration with some keys changed, or where it is None left out, written."""
    path = folder / "tokenizer_config.json"
    merged = {**json.loads(path.read_bytes()), **changed}
    config = {key: value for key, value in merged.items() if value is not None or key not in changed}
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return config


def _from_sentencepiece(path: Path) -> tokenizers.Tokenizer:
    prefix = import_protobuf().ModelProto.FromString(path.read_bytes()).normalizer_spec.add_dummy_prefix
    return LlamaTokenizerFast(
        vocab_file=str(path),
        legacy=prefix,  # which puts the space before a text that begins with one, too, as SentencePiece does
        add_prefix_space=prefix,
        add_bos_token=False,
        add_eos_token=False,
    ).backend_tokenizer


def _from_ranks(definition: Definition) -> tokenizers.Tokenizer:
    """Byte-level BPE with every pair that makes a token as a merge, in the order of the ranks.

    Where two pairs of one token overlap `tiktoken` takes the left one and `tokenizers` the one of lower ranks; tokens
    that were learned by merging leave no text in which it matters, as far as is known.
    """
    letters = bytes_to_unicode()
    ranks = definition.ranks
    names = {token: "".join(letters[byte] for byte in token) for token in ranks}
    pairs = [
        (rank, ranks[token[:cut]], ranks[token[cut:]], names[token[:cut]], names[token[cut:]])
        for token, rank in ranks.items()
        for cut in range(1, len(token))
        if token[:cut] in ranks and token[cut:] in ranks
    ]
    vocabulary = {**{names[token]: rank for token, rank in ranks.items()}, **definition.special_tokens}
    merges = [pair[3:] for pair in sorted(pairs)]
    found = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    found.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(definition.pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    found.decoder = decoders.ByteLevel()
    found.add_special_tokens([tokenizers.AddedToken(name, normalized=False) for name in definition.special_tokens])
    return found


def _from_json(path: Path) -> tokenizers.Tokenizer:
    content = path.read_text(encoding="utf-8")
    found = tokenizers.Tokenizer.from_str(content)
    if found.encode("a").ids == found.encode("a", add_special_tokens=False).ids:
        return found
    return tokenizers.Tokenizer.from_str(json.dumps({**json.loads(content), "post_processor": None}))
