"""A tokenizer as `transformers` reads it."""

import json
import shutil
from pathlib import Path

import tokenizers
from transformers import LlamaTokenizerFast, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import import_protobuf

from bigtrain.config import ModelConfig
from bigtrain.data.tokenizer import SentencePieceTokenizer, Tokenizer


def export_tokenizer(tokenizer: Tokenizer, folder: Path, model: ModelConfig) -> None:
    """Write the files from which `AutoTokenizer` makes a tokenizer that gives the same ids.

    Like ours it adds nothing to a text and takes nothing in it for a special token. Its token for a beginning
    is the one that ends documents: that is what stood before every document in training.

    Raises:
        OSError: They cannot be written.
    """
    is_sentencepiece = isinstance(tokenizer, SentencePieceTokenizer)
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


def _from_sentencepiece(path: Path) -> tokenizers.Tokenizer:
    prefix = import_protobuf().ModelProto.FromString(path.read_bytes()).normalizer_spec.add_dummy_prefix
    return LlamaTokenizerFast(
        vocab_file=str(path),
        legacy=prefix,  # which puts the space before a text that begins with one, too, as SentencePiece does
        add_prefix_space=prefix,
        add_bos_token=False,
        add_eos_token=False,
    ).backend_tokenizer


def _from_json(path: Path) -> tokenizers.Tokenizer:
    content = path.read_text(encoding="utf-8")
    found = tokenizers.Tokenizer.from_str(content)
    if found.encode("a").ids == found.encode("a", add_special_tokens=False).ids:
        return found
    return tokenizers.Tokenizer.from_str(json.dumps({**json.loads(content), "post_processor": None}))
