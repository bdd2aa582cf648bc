"""Weights, configuration and tokenizer written as a Hugging Face folder."""

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import StateDictSplit, split_state_dict_into_shards_factory
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PretrainedConfig

from bigtrain.checkpoint.catalog import Checkpoint
from bigtrain.config import ModelConfig
from bigtrain.config.tasks import FinetuneConfig
from bigtrain.convert.classes import class_of, task_keys, weights_with_head
from bigtrain.convert.family import Family
from bigtrain.convert.mapping import Piece, pieces
from bigtrain.convert.safetensors_file import TensorFile
from bigtrain.convert.stream import stream
from bigtrain.convert.tokenizer import export_tokenizer, is_hugging_faces_own, padding_id
from bigtrain.convert.weights import VOCABULARY, Weights
from bigtrain.data.framing import Framing
from bigtrain.data.tokenizer import Tokenizer
from bigtrain.errors import ConversionError

FILE_BYTES = 5_000_000_000
"""Weights per file, at most, or one tensor; Hugging Face's own limit."""


@dataclass(frozen=True)
class Written:
    """Weights written to a folder."""

    parameters: int
    bytes: int
    files: int


def write_model(
    source: Checkpoint,
    model: ModelConfig,
    family: Family,
    dtype: str,
    tokenizer: Tokenizer,
    folder: Path,
    *,
    framing: Framing | None = None,
    task: FinetuneConfig | None = None,
) -> Written:
    """Write a checkpoint's weights, configuration and tokenizer as `transformers` reads them.

    Args:
        source: The checkpoint.
        model: Its model with the vocabulary that is to be written; what the checkpoint has beyond it is left out.
        family: What it is to become.
        dtype: Type of the saved weights.
        tokenizer: The model's.
        folder: Where to.
        framing: What stood around texts in training, where something did.
        task: What the model was fine-tuned for, if that gave it another head.

    Raises:
        CheckpointError: A tensor or file is missing or damaged.
        ConversionError: The weights are not those of the family, or `transformers` has no such model.
    """
    export_tokenizer(tokenizer, folder, model, framing)
    keys = family.config(model)
    tokens: dict[str, int | list[int] | None]
    if task is not None and framing is not None:
        (folder / "generation_config.json").unlink(missing_ok=True)
        tokens = {"eos_token_id": tokenizer.eos_id, "pad_token_id": padding_id(tokenizer, framing)}
        keys |= task_keys(family, task)
    else:
        tokens = _generation(tokenizer, folder, framing, model.architecture)
    if keys.get("pad_token_id", tokens["pad_token_id"]) != tokens["pad_token_id"]:
        raise ConversionError(
            f"a {family.name} counts positions from its padding token, which model.position_offset "
            f"({model.position_offset}) makes {keys['pad_token_id']}, and {tokenizer.path} has {tokens['pad_token_id']}"
        )
    config = AutoConfig.for_model(**{**tokens, **keys}, dtype=dtype)
    config.save_pretrained(folder)
    return _write_weights(source, model, family, config, folder, has_task=task is not None)


def _generation(
    tokenizer: Tokenizer, folder: Path, framing: Framing | None, architecture: str
) -> dict[str, int | list[int] | None]:
    """Which tokens begin and end a text, by their keys of `config.json`; how the model is asked to generate is written
    into the folder: as it came, or with the tokenizer's tokens."""
    is_own = is_hugging_faces_own(tokenizer)
    if (folder / "generation_config.json").is_file():
        generation = GenerationConfig.from_pretrained(folder)
    else:
        bos: int | None
        bos = end = pad = tokenizer.eos_id  # what stood before each document was the end of the one before
        if is_own:
            exported = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            bos, pad = exported.bos_token_id, exported.pad_token_id
        elif framing is not None:
            bos, end, pad = next(iter(framing.begin), None), framing.end[0], framing.pad
        generation = GenerationConfig(bos_token_id=bos, eos_token_id=end, pad_token_id=pad)
        if architecture == "t5" and framing is not None:
            generation.decoder_start_token_id = framing.pad
        generation.save_pretrained(folder)
    names = ["bos_token_id", "eos_token_id"]
    names += ["pad_token_id"] if is_own or framing is not None else []
    names += ["decoder_start_token_id"] if architecture == "t5" else []
    return {"pad_token_id": None} | {name: getattr(generation, name) for name in names}


def _write_weights(
    source: Checkpoint,
    model: ModelConfig,
    family: Family,
    config: PretrainedConfig,
    folder: Path,
    *,
    has_task: bool,
) -> Written:
    """Write every weight in the configuration's type, as they come out of the checkpoint."""
    dtype = config.dtype
    weights = Weights(source)
    shapes = {
        name: (model.vocab_size, *shape[1:]) if name in VOCABULARY else shape for name, shape in weights.shapes.items()
    }
    targets = model_shapes(config, family.buffers)
    weight_map = weights_with_head(family, config, targets) if has_task else family.weights
    plan = pieces(weight_map, model, shapes, targets)
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


def model_shapes(config: PretrainedConfig, buffers: Sequence[str] = ()) -> dict[str, tuple[int, ...]]:
    """The tensors that `transformers` wants to read, from its own model, built without memory; a tied one once, and
    none that a pattern of `buffers` matches."""
    with torch.device("meta"):
        model = class_of(config)(config)
    tied = tuple(model._tied_weights_keys or ()) if config.tie_word_embeddings else ()  # or the ends of their names
    found: dict[int, tuple[str, tuple[int, ...]]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not name.endswith(tied) and not any(re.fullmatch(pattern, name) for pattern in buffers):
            found.setdefault(id(tensor), (name, tuple(tensor.shape)))
    return dict(found.values())


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
