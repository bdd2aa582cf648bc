"""Weights, configuration and tokenizer written as a Hugging Face folder."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import StateDictSplit, split_state_dict_into_shards_factory
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
)

from bigtrain.checkpoint.catalog import Checkpoint
from bigtrain.config import ModelConfig
from bigtrain.convert.family import Family
from bigtrain.convert.mapping import Piece, pieces
from bigtrain.convert.safetensors_file import TensorFile
from bigtrain.convert.stream import stream
from bigtrain.convert.tokenizer import export_tokenizer, is_hugging_faces_own
from bigtrain.convert.weights import VOCABULARY, Weights
from bigtrain.data.tokenizer import Tokenizer

FILE_BYTES = 5_000_000_000
"""Weights per file, at most, or one tensor; Hugging Face's own limit."""
_CLASSES = {"BertForMaskedLM": AutoModelForMaskedLM, "BertForPreTraining": AutoModelForPreTraining}
"""Those that are no causal language models."""


@dataclass(frozen=True)
class Written:
    """Weights written to a folder."""

    parameters: int
    bytes: int
    files: int


def write_model(
    source: Checkpoint, model: ModelConfig, family: Family, dtype: str, tokenizer: Tokenizer, folder: Path
) -> Written:
    """Write a checkpoint's weights, configuration and tokenizer as `transformers` reads them.

    Args:
        source: The checkpoint.
        model: Its model with the vocabulary that is to be written; what the checkpoint has beyond it is left out.
        family: What it is to become.
        dtype: Type of the saved weights.
        tokenizer: The model's.
        folder: Where to.

    Raises:
        CheckpointError: A tensor or file is missing or damaged.
        ConversionError: The weights are not those of the family.
    """
    export_tokenizer(tokenizer, folder, model)
    generation = _generation(tokenizer, folder)
    tokens = {name: getattr(generation, name) for name in ("bos_token_id", "eos_token_id")}
    pad = {"pad_token_id": generation.pad_token_id if is_hugging_faces_own(tokenizer) else None}
    config = AutoConfig.for_model(**family.config(model), **tokens, **pad, dtype=dtype)
    config.save_pretrained(folder)
    return _write_weights(source, model, family, config, folder)


def _generation(tokenizer: Tokenizer, folder: Path) -> GenerationConfig:
    """How the model is asked to generate: as it came, or with the tokenizer's tokens; written into the folder."""
    if (folder / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(folder)
    end = tokenizer.eos_id  # the beginning's too: what stood before each document was the end of the one before
    bos, pad = end, end
    if is_hugging_faces_own(tokenizer):
        exported = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        bos, pad = exported.bos_token_id, exported.pad_token_id
    generation = GenerationConfig(bos_token_id=bos, eos_token_id=end, pad_token_id=pad)
    generation.save_pretrained(folder)
    return generation


def _write_weights(
    source: Checkpoint, model: ModelConfig, family: Family, config: PretrainedConfig, folder: Path
) -> Written:
    """Write every weight in the configuration's type, as they come out of the checkpoint."""
    dtype = config.dtype
    weights = Weights(source)
    shapes = {
        name: (model.vocab_size, *shape[1:]) if name in VOCABULARY else shape for name, shape in weights.shapes.items()
    }
    targets = model_shapes(config)
    plan = pieces(family.weights, model, shapes, targets)
    split = split_into_files(targets, dtype, FILE_BYTES)
    with ExitStack() as open_files:
        files = {}
        for name, tensors in split.filename_to_tensors.items():
            files[name] = TensorFile(folder / name, {tensor: targets[tensor] for tensor in tensors}, dtype)
            open_files.callback(files[name].close)

        def write(wanted: Sequence[Piece]) -> None:
            name, index = wanted[0].source, wanted[0].index
            values = weights.read(name, index)
            values = values[: model.vocab_size] if name in VOCABULARY else values
            for piece in wanted:
                files[split.tensor_to_filename[piece.name]].write(piece.name, piece.cut.out_of(values, model))

        stream([(_bytes(weights.shapes, wanted[0]), wanted) for wanted in by_source(plan)], write)
    write_index(folder, split)
    parameters = sum(torch.Size(shape).numel() for shape in targets.values())
    return Written(parameters, parameters * dtype.itemsize, len(split.filename_to_tensors))


def write_index(folder: Path, split: StateDictSplit) -> None:
    """Say which file holds which tensor, where there are several."""
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def model_shapes(config: PretrainedConfig) -> dict[str, tuple[int, ...]]:
    """The tensors that `transformers` wants to read, from its own model, built without memory; a tied one once."""
    with torch.device("meta"):
        model = _CLASSES.get((config.architectures or [""])[0], AutoModelForCausalLM).from_config(config)
    tied = tuple(model._tied_weights_keys or ()) if config.tie_word_embeddings else ()  # or the ends of their names
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if not name.endswith(tied)}


def by_source(plan: Sequence[Piece]) -> list[list[Piece]]:
    """The pieces of each of our weights (of one layer or expert) together."""
    found: dict[tuple[str, tuple[int, ...]], list[Piece]] = defaultdict(list)
    for piece in plan:
        found[piece.source, piece.index].append(piece)
    return list(found.values())


def _bytes(shapes: Mapping[str, tuple[int, ...]], piece: Piece) -> int:
    """What the weight takes that the piece is of, in float32."""
    return 4 * torch.Size(shapes[piece.source][len(piece.index) :]).numel()


def split_into_files(targets: Mapping[str, tuple[int, ...]], dtype: torch.dtype, file_bytes: int) -> StateDictSplit:
    """Which tensors of these names and shapes go into which file."""
    return split_state_dict_into_shards_factory(
        {name: torch.empty(shape, dtype=dtype, device="meta") for name, shape in targets.items()},
        get_storage_size=lambda tensor: tensor.nbytes,
        get_storage_id=lambda tensor: None,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=file_bytes,
    )
