"""Weights, configuration and tokenizer written as a Hugging Face folder."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PretrainedConfig

from bigtrain.checkpoint.catalog import Checkpoint
from bigtrain.config import ModelConfig
from bigtrain.convert import llama
from bigtrain.convert.mapping import Piece, pieces
from bigtrain.convert.tokenizer import export_tokenizer
from bigtrain.convert.weights import read_weights, weight_shapes
from bigtrain.data.tokenizer import Tokenizer

FILE_BYTES = 5_000_000_000
"""Weights per file, at most; Hugging Face's own limit. One file's weights are in memory at a time."""


@dataclass(frozen=True)
class Written:
    """Weights written to a folder."""

    parameters: int
    bytes: int
    files: int


def write_model(source: Checkpoint, model: ModelConfig, dtype: str, tokenizer: Tokenizer, folder: Path) -> Written:
    """Write a checkpoint's weights, configuration and tokenizer as `transformers` reads them.

    Raises:
        CheckpointError: A tensor or file is missing or damaged.
        ConversionError: The weights are not those of the family.
    """
    config = AutoConfig.for_model(**llama.hf_config(model, dtype, tokenizer.eos_id))
    config.save_pretrained(folder)
    end = tokenizer.eos_id
    GenerationConfig(bos_token_id=end, eos_token_id=end, pad_token_id=end).save_pretrained(folder)
    export_tokenizer(tokenizer, folder, model)
    return _write_weights(source, model, config, folder)


def _write_weights(source: Checkpoint, model: ModelConfig, config: PretrainedConfig, folder: Path) -> Written:
    """Write every weight in the configuration's type, a file's worth at a time."""
    dtype = config.dtype
    shapes = weight_shapes(source)
    targets = _targets(config)
    plan = {piece.name: piece for piece in pieces(llama.WEIGHTS, model, shapes, targets)}
    split = split_state_dict_into_shards_factory(
        {name: torch.empty(shape, dtype=dtype, device="meta") for name, shape in targets.items()},
        get_storage_size=lambda tensor: tensor.nbytes,
        get_storage_id=lambda tensor: None,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=FILE_BYTES,
    )
    for file, names in split.filename_to_tensors.items():
        tensors = _read(source, shapes, model, [plan[name] for name in names], dtype)
        save_file(tensors, folder / file, metadata={"format": "pt"})
        shutil.copymode(folder / "config.json", folder / file)  # safetensors lets nobody else read it
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    parameters = sum(torch.Size(shape).numel() for shape in targets.values())
    return Written(parameters, parameters * dtype.itemsize, len(split.filename_to_tensors))


def _targets(config: PretrainedConfig) -> dict[str, tuple[int, ...]]:
    """The tensors that `transformers` wants to read, from its own model, built without memory."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    tied = set(model._tied_weights_keys or ()) if config.tie_word_embeddings else set()
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name not in tied}


def _read(
    source: Checkpoint,
    shapes: dict[str, tuple[int, ...]],
    model: ModelConfig,
    wanted: Sequence[Piece],
    dtype: torch.dtype,
) -> dict[str, torch.Tensor]:
    weights = read_weights(source, shapes, list({(piece.source, piece.layer): None for piece in wanted}))
    cut = {}
    for piece in wanted:
        weight = weights[piece.source, piece.layer]
        cut[piece.name] = (weight if piece.rows is None else weight[piece.rows(model)]).to(dtype).contiguous()
    return cut
