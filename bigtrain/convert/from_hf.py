"""From a Hugging Face folder to a checkpoint that a run of any layout can begin with."""

import math
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from bigtrain.checkpoint import catalog
from bigtrain.config import ModelConfig
from bigtrain.config.reading import dump
from bigtrain.convert.output import written_aside
from bigtrain.convert.parity import Parity
from bigtrain.convert.source import MODEL_FILE
from bigtrain.data.framing import framing_of
from bigtrain.data.tokenizer import Tokenizer, load_tokenizer
from bigtrain.errors import ConversionError

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
    "spiece.model",
    "sentencepiece.bpe.model",
)

_OLDER_FILES = ("vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model")
"""What a tokenizer may lie in alone, of which `transformers` makes the first of those."""


@dataclass(frozen=True)
class Taken:
    """What `convert_from_hf` wrote."""

    path: Path
    source: Path
    family: str
    parameters: int
    dtype: str
    """Of the weights in the folder, and in the checkpoint."""
    parity: Parity | None
    """The proof, where it was asked for."""

    def describe(self) -> str:
        """What was done, and what to do with it."""
        line = f"{self.path}: {self.family}, {self.parameters:,} parameters in {self.dtype} ({self.source})"
        proof = "not verified" if self.parity is None else self.parity.describe()
        return f"{line}\n{proof}\ntrain on from it with a configuration that says `extends: {self.path / MODEL_FILE}`"


def convert_from_hf(
    folder: Path, output: Path, *, verify: bool = True, text: Path | None = None, vocab_size: int | None = None
) -> Taken:
    """Write a Hugging Face model as a checkpoint of step 0, with its tokenizer and a configuration to extend.

    Args:
        folder: The Hugging Face folder.
        output: The folder to make; new or empty. It appears when it is complete, and verified if that is asked.
        verify: Compare the logits of both models on real text, and write `parity.json`.
        text: A text file to compare on; default: Python's standard library.
        vocab_size: Rows of the vocabulary, to which rows of zeros are added: for `parallel.tensor` must divide it.
            Default: those of the model.

    Raises:
        ConversionError: The family or a key of `config.json` is not supported, weights are missing, unknown or of
            another shape, the output cannot be written, or the two models do not agree. Nothing is left behind.
        DataError: The tokenizer or the text cannot be read.
    """
    if not folder.is_dir():
        raise ConversionError(f"{folder}: no such folder; give a folder as save_pretrained or a download makes it")
    from bigtrain.convert.hf_config import read_config

    family, model, config = read_config(folder)
    if vocab_size is not None:
        model = _padded(model, vocab_size)
    with written_aside(output) as aside:
        from bigtrain.convert.folder import Folder
        from bigtrain.convert.intake import plan_of, shapes_there, write_intake
        from bigtrain.convert.own_model import own_shapes
        from bigtrain.convert.verify import check_memory, verify_intake

        if verify:
            check_memory(model)
        source = Folder(folder, family, model.tie_word_embeddings)
        if family.pooler:
            model = model.model_copy(update={"add_pooling_layer": family.pooler in source.shapes})
        shapes = shapes_there(family, own_shapes(model), source)
        plan = plan_of(family, model, shapes, source, config.vocab_size)
        tokenizer = take_tokenizer(folder, aside / "tokenizer", model)
        _check_start(folder, model, tokenizer, config.decoder_start_token_id)
        origin = {"family": family.model_type, "vocab_size": config.vocab_size, "folder": folder.resolve().name}
        with ThreadPoolExecutor(1, "digest") as aside_of_it:  # reads the files at the same time
            digest = aside_of_it.submit(source.digest)
            final = write_intake(
                aside / "checkpoints", source, model, plan, shapes, lambda: {**origin, "sha256": digest.result()}
            )
        write_model_file(aside / MODEL_FILE, model, output)
        parity = None
        if verify:
            parity = verify_intake(catalog.read(final), folder, digest.result(), tokenizer, text, aside)
    parameters = sum(math.prod(shape) for shape in shapes.values())
    return Taken(output, folder, family.name, parameters, str(source.dtype).removeprefix("torch."), parity)


def _padded(model: ModelConfig, vocab_size: int) -> ModelConfig:
    if vocab_size < model.vocab_size:
        raise ConversionError(f"vocab_size is {vocab_size}, and the model has {model.vocab_size} rows: none can go")
    return model.model_copy(update={"vocab_size": vocab_size})


def _check_start(folder: Path, model: ModelConfig, tokenizer: Tokenizer | None, start: int | None) -> None:
    """A T5's decoder starts here from the tokenizer's padding."""
    if model.architecture != "t5" or tokenizer is None or start is None:
        return
    ours = framing_of(model, tokenizer).pad
    if start != ours:
        raise ConversionError(
            f"{folder}: decoder_start_token_id is {start}, and a decoder here starts from the tokenizer's "
            f"padding, {ours}"
        )


def take_tokenizer(folder: Path, into: Path, model: ModelConfig) -> Tokenizer | None:
    """Copy the tokenizer, if there is one; one in an older form is written anew by `transformers`."""
    into.mkdir()
    found = [name for name in _TOKENIZER_FILES if (folder / name).is_file()]
    for name in found:
        shutil.copyfile(folder / name, into / name)
    if not {"tokenizer.json", "tokenizer.model"} & set(found):
        if not any((folder / name).is_file() for name in _OLDER_FILES):
            shutil.rmtree(into)
            return None
        from transformers import AutoTokenizer

        AutoTokenizer.from_pretrained(folder, local_files_only=True).save_pretrained(into)
    tokenizer = load_tokenizer(into)
    if tokenizer.vocab_size > model.vocab_size:
        raise ConversionError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens and the model {model.vocab_size} rows; "
            "it is another model's"
        )
    return tokenizer


def write_model_file(path: Path, model: ModelConfig, output: Path) -> None:
    """The sections that a run from this model extends."""
    sections = {
        "model": model.model_dump(mode="json", exclude_defaults=True),
        "checkpoint": {"initialize_from": str(output.absolute())},
    }
    path.write_text(dump(sections), encoding="utf-8")
