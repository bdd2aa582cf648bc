"""From a checkpoint of any layout to a folder that `transformers` loads."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, GenerationConfig, PretrainedConfig

from bigtrain.checkpoint.catalog import Checkpoint
from bigtrain.config import ModelConfig
from bigtrain.convert import llama
from bigtrain.convert.mapping import Piece, pieces
from bigtrain.convert.output import written_aside
from bigtrain.convert.source import find_checkpoint, model_config, read_weights, run_folder, weight_shapes
from bigtrain.convert.tokenizer import export_tokenizer, find_tokenizer
from bigtrain.convert.verify import Parity, verify_export

FILE_BYTES = 5_000_000_000
"""Weights per file, at most; Hugging Face's own limit. One file's weights are in memory at a time."""


@dataclass(frozen=True)
class Exported:
    """What `convert_to_hf` wrote."""

    path: Path
    checkpoint: Path
    step: int
    parameters: int
    bytes: int
    """Of the weights."""
    files: int
    """That hold weights."""
    parity: Parity | None
    """The proof, where it was asked for."""

    def describe(self) -> str:
        """What was done, in a line or two."""
        line = (
            f"{self.path}: {self.parameters:,} parameters of step {self.step} ({self.checkpoint}), "
            f"{self.bytes / 1e6:,.1f} MB in {self.files} file{'s' if self.files > 1 else ''}"
        )
        return line if self.parity is None else f"{line}\n{self.parity.describe()}"


def convert_to_hf(
    checkpoint: Path,
    output: Path,
    *,
    dtype: Literal["float32", "bfloat16"] = "float32",
    verify: bool = False,
    tokenizer: Path | None = None,
    text: Path | None = None,
) -> Exported:
    """Write a checkpoint's model as a Hugging Face folder.

    Args:
        checkpoint: A run's folder (its newest complete checkpoint), its `checkpoints`, or one step's folder.
        output: The folder to make; new or empty. It appears when it is complete, and verified if that is asked.
        dtype: Type of the saved weights.
        verify: Compare the logits of both models on real text, and write `parity.json` beside the weights.
        tokenizer: The tokenizer's file or folder, where the run's folder has none.
        text: A text file to compare on; default: the run's validation data, else Python's standard library.

    Raises:
        CheckpointError: There is no such checkpoint, or it is incomplete or damaged.
        ConversionError: The model is not of a family that can be exported, the output cannot be written, or the
            two models do not agree. Nothing is left behind.
        DataError: The tokenizer or the text cannot be read.
    """
    source = find_checkpoint(checkpoint)
    model = model_config(source)
    llama.check_shape(model)
    tokens = find_tokenizer(run_folder(source), tokenizer, model)
    with written_aside(output) as folder:
        config = llama.hf_config(model, dtype, tokens.eos_id)
        config.save_pretrained(folder)
        files = _write_weights(source, model, config, getattr(torch, dtype), folder)
        GenerationConfig(
            bos_token_id=tokens.eos_id, eos_token_id=tokens.eos_id, pad_token_id=tokens.eos_id
        ).save_pretrained(folder)
        export_tokenizer(tokens, folder, model)
        parity = verify_export(source, folder, tokens, text) if verify else None
    return Exported(output, source.path, source.state.step, files.parameters, files.bytes, files.count, parity)


@dataclass(frozen=True)
class _Files:
    parameters: int
    bytes: int
    count: int


def _write_weights(
    source: Checkpoint, model: ModelConfig, config: PretrainedConfig, dtype: torch.dtype, folder: Path
) -> _Files:
    """Write every weight, a file's worth at a time."""
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
    return _Files(parameters, parameters * dtype.itemsize, len(split.filename_to_tensors))


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
    return {piece.name: piece.cut(weights[piece.source, piece.layer], model).to(dtype).contiguous() for piece in wanted}
