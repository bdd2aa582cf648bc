"""The tokenizer of a run: found, and written as `transformers` reads it."""

import json
import shutil
from pathlib import Path

import tokenizers
from transformers import LlamaTokenizerFast, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import import_protobuf

from bigtrain.config import ModelConfig
from bigtrain.data.tokenizer import SentencePieceTokenizer, Tokenizer, load_tokenizer
from bigtrain.errors import ConversionError


def find_tokenizer(run: Path | None, given: Path | None, model: ModelConfig) -> Tokenizer:
    """The tokenizer of a model: the copy in the run's folder, or the one given where there is none.

    Args:
        run: The run's folder.
        given: A tokenizer's file or folder; where the run has a copy it must be the same.
        model: The model's shape.

    Raises:
        ConversionError: There is neither, they differ, or the model has fewer rows than the tokenizer tokens.
        DataError: One cannot be read.
    """
    own = run / "tokenizer" if run is not None and (run / "tokenizer").is_dir() else None
    if own is None and given is None:
        raise ConversionError(
            "the checkpoint does not lie in a run's folder with a tokenizer/ in it; "
            "name the tokenizer that made its data (--tokenizer)"
        )
    found = load_tokenizer(own or given)  # type: ignore[arg-type]  # one of them is there
    if own is not None and given is not None and load_tokenizer(given).fingerprint != found.fingerprint:
        raise ConversionError(f"{given} is not the tokenizer that the model was trained with, {found.path}")
    if found.vocab_size > model.vocab_size:
        raise ConversionError(
            f"{found.path} has {found.vocab_size} tokens and the model only {model.vocab_size} (model.vocab_size): "
            "it was trained with another tokenizer"
        )
    return found


def export_tokenizer(tokenizer: Tokenizer, folder: Path, model: ModelConfig) -> None:
    """Write the files from which `AutoTokenizer` makes a tokenizer that gives the same ids.

    Like ours it adds nothing to a text and takes nothing in it for a special token. Its token for a beginning
    is the one that ends documents: that is what stood before every document in training.
    """
    is_sentencepiece = isinstance(tokenizer, SentencePieceTokenizer)
    backend = _from_sentencepiece(tokenizer.path) if is_sentencepiece else _from_json(tokenizer.path)
    end = backend.id_to_token(tokenizer.eos_id)
    PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=end,
        eos_token=end,
        model_max_length=model.max_position_embeddings,
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)
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
