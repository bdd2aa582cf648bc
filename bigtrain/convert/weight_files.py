"""Weights alone, under our own names: a folder of safetensors, or one `.pt` that torch loads with `weights_only`.

A tensor a layer, and an expert, as Megatron-core names them in a model: `decoder.layers.3.mlp.linear_fc1.weight` is a
part of the checkpoint's `decoder.layers.mlp.linear_fc1.weight`.
"""

import json
import pickle
import sys
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import yaml
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bigtrain.checkpoint.find import find_checkpoint
from bigtrain.config import ModelConfig
from bigtrain.config.reading import dump
from bigtrain.convert.arriving import Box, boxes_of
from bigtrain.convert.brought import Brought, bring
from bigtrain.convert.export import FILE_BYTES, Written, split_into_files, write_index
from bigtrain.convert.mapping import some
from bigtrain.convert.output import written_aside
from bigtrain.convert.own_model import own_shapes
from bigtrain.convert.safetensors_file import TensorFile
from bigtrain.convert.source import MODEL_FILE, model_config, run_folder
from bigtrain.convert.stream import stream
from bigtrain.convert.weights import Weights
from bigtrain.data.tokenizer import copy_tokenizer, load_tokenizer
from bigtrain.errors import ConversionError

_DAMAGED = (SafetensorError, OSError, ValueError, KeyError, pickle.UnpicklingError, RuntimeError, EOFError)


def convert_to_weights(checkpoint: Path, output: Path, *, dtype: str = "float32") -> Written:
    """Write a checkpoint's weights as safetensors, or as one `.pt`.

    Args:
        checkpoint: A run's folder (its newest complete checkpoint), its `checkpoints`, or one step's folder or URL.
        output: The folder to make, or a file whose name ends in `.pt`: a dictionary with `model`, the section of the
            configuration, and `weights`.
        dtype: Type of the saved weights.

    Raises:
        CheckpointError: There is no such checkpoint, or it is incomplete or damaged.
        ConversionError: The output cannot be written. Nothing is left behind.
    """
    source = find_checkpoint(checkpoint)
    model = model_config(source)
    weights = Weights(source)
    saved_type: torch.dtype = getattr(torch, dtype)
    if output.suffix == ".pt":
        return _write_pickled(weights, model, output, saved_type)
    run = run_folder(source, checkpoint)
    with written_aside(output) as aside:
        written = _write(weights, aside, saved_type, FILE_BYTES)
        (aside / MODEL_FILE).write_text(dump(_section(model)), encoding="utf-8")
        if run is not None and (run / "tokenizer").is_dir():
            (aside / "tokenizer").mkdir()
            copy_tokenizer(load_tokenizer(run / "tokenizer"), aside / "tokenizer")
    return written


def convert_from_weights(source: Path, output: Path, *, tokenizer: Path | None = None) -> Brought:
    """The way back: a checkpoint that a run can begin with.

    Args:
        source: A folder or `.pt` as `convert_to_weights` makes it.
        output: The folder to make; new or empty.
        tokenizer: The tokenizer's file or folder, where the source has none.

    Raises:
        ConversionError: A file is damaged, or the weights are not those of the model.
    """
    given = _Pickled(source) if source.suffix == ".pt" else _Folder(source)
    shapes = own_shapes(given.model)
    expected = {_own_name(box): shapes[box[0]][len(box[1]) :] for box in boxes_of(shapes)}
    if missing := sorted(expected.keys() - given.shapes.keys()):
        raise ConversionError(f"{source} lacks {some(missing)}, of which the model is made")
    if extra := sorted(given.shapes.keys() - expected.keys()):
        raise ConversionError(f"{source} holds {some(extra)}, which the model does not have")
    for name, shape in expected.items():
        if given.shapes[name] != shape:
            raise ConversionError(f"{source}: {name} is {given.shapes[name]}, and the model section makes it {shape}")
    beside = source / "tokenizer"
    return bring(
        output,
        given.model,
        shapes,
        lambda box: given.read(_own_name(box)).float(),
        what=f"{source}",
        tokenizer=tokenizer or (beside if beside.is_dir() else None),
        origin={"weights": source.resolve().name},
    )


def _own_name(box: Box) -> str:
    """What a part of a weight is called."""
    name, index = box
    if index:
        name = name.replace("coder.layers.", f"coder.layers.{index[0]}.", 1)
    if len(index) > 1:
        name = name.replace(".experts.experts.", f".experts.experts.{index[1]}.", 1)
    return name


def _section(model: ModelConfig) -> dict[str, Any]:
    return {"model": model.model_dump(mode="json", exclude_defaults=True)}


def _write(weights: Weights, folder: Path, dtype: torch.dtype, file_bytes: int) -> Written:
    """Safetensors, as the weights come out of the checkpoint."""
    boxes = {_own_name(box): box for box in boxes_of(weights.shapes)}
    shapes = {name: weights.shapes[box[0]][len(box[1]) :] for name, box in boxes.items()}
    split = split_into_files(shapes, dtype, file_bytes)
    with ExitStack() as open_files:
        files = {}
        for file, names in split.filename_to_tensors.items():
            files[file] = TensorFile(folder / file, {name: shapes[name] for name in names}, dtype)
            open_files.callback(files[file].close)

        def write(name: str) -> None:
            files[split.tensor_to_filename[name]].write(name, weights.read(*boxes[name]))

        stream([(4 * torch.Size(shape).numel(), name) for name, shape in shapes.items()], write)
    write_index(folder, split)
    parameters = sum(torch.Size(shape).numel() for shape in shapes.values())
    return Written(parameters, parameters * dtype.itemsize, len(files))


def _write_pickled(weights: Weights, model: ModelConfig, output: Path, dtype: torch.dtype) -> Written:
    """By way of a file beside it, out of which torch then reads tensor by tensor what it writes."""
    if output.exists():
        raise ConversionError(f"{output} exists already; remove it or choose another output file")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as name:
            aside = Path(name)
            written = _write(weights, aside, dtype, sys.maxsize)
            file = aside / "model.safetensors"
            torch.save({**_section(model), "weights": _mapped(file)}, aside / output.name)
            (aside / output.name).rename(output)
    except (OSError, RuntimeError) as error:  # torch's own of a full disk
        raise ConversionError(f"{output} cannot be written: {error}") from error
    return written


def _mapped(file: Path) -> dict[str, Tensor]:
    """The tensors of a file, each of which comes into memory when it is read."""
    with safe_open(file, "pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (it is no dictionary)


class _Folder:
    """Safetensors, one file or several; opened anew for every tensor, so that what was read does not stay."""

    def __init__(self, path: Path) -> None:
        self.model = _model(_read_yaml(path / MODEL_FILE), path / MODEL_FILE)
        self._files: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        files = sorted(path.glob("*.safetensors"))
        index = path / "model.safetensors.index.json"
        for file in files or [path / "model.safetensors"]:
            try:
                with safe_open(file, "pt") as opened:
                    found = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
            except _DAMAGED as error:
                raise ConversionError(f"{file} cannot be read: {error}") from None
            self.shapes |= found
            self._files |= dict.fromkeys(found, file)
        if index.is_file():
            named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            if missing := sorted(named - {file.name for file in files}):
                raise ConversionError(f"{index} names {some(missing)}, and {path} has no such file")

    def read(self, name: str) -> Tensor:
        with safe_open(self._files[name], "pt") as opened:
            return opened.get_tensor(name)


class _Pickled:
    """A `.pt`, read with nothing executed and mapped into memory."""

    def __init__(self, path: Path) -> None:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            self._weights: dict[str, Tensor] = dict(content["weights"])
            self.shapes = {name: tuple(tensor.shape) for name, tensor in self._weights.items()}
        except (*_DAMAGED, TypeError, AttributeError) as error:
            raise ConversionError(
                f"{path} cannot be read as a dictionary of `model` and `weights` and nothing else "
                f"({str(error).splitlines()[0]})"
            ) from None
        self.model = _model(content, path)

    def read(self, name: str) -> Tensor:
        return self._weights[name]


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConversionError(f"{path} cannot be read ({error}); it says what model the weights are of") from None


def _model(content: Any, path: Path) -> ModelConfig:
    try:
        return ModelConfig.model_validate(content["model"])
    except (KeyError, TypeError, ValidationError) as error:
        raise ConversionError(f"{path} has no sound section `model`: {error}") from None
