"""From Megatron-LM's distributed checkpoints (`torch_dist`, megatron-core's own format) to ours."""

import json
import re
from pathlib import Path
from typing import Any

from bigtrain.checkpoint.catalog import Checkpoint, TrainingState
from bigtrain.config import ModelConfig, parse_config
from bigtrain.config.reading import file_layers, merge
from bigtrain.convert.brought import Box, Brought, bring
from bigtrain.convert.mapping import some
from bigtrain.errors import ConversionError

NORMS = {
    "self_attention.linear_qkv.layer_norm_": "input_layernorm.",
    "mlp.linear_fc1.layer_norm_": "pre_mlp_layernorm.",
}
"""A norm before a matrix belongs to it there, whether Transformer Engine fuses them or not."""
_NOT_WEIGHTS = re.compile(r"optimizer\.|chained_|rng_state|rerun_state|.*\._extra_state|.*\.expert_bias$")


def convert_from_megatron(folder: Path, output: Path, *, config: Path, tokenizer: Path | None = None) -> Brought:
    """Write the weights of a Megatron-LM checkpoint as one that a run can begin with.

    Args:
        folder: Where Megatron-LM saved (`--save`), or one iteration of it.
        output: The folder to make; new or empty.
        config: A configuration file with the `model` section; Megatron-LM's own arguments are pickled Python objects,
            which are not opened. Its `vocab_size` is the padded one.
        tokenizer: The tokenizer's file or folder.

    Raises:
        ConfigError: The configuration is wrong.
        ConversionError: It is no such checkpoint, or its weights are not those of the model.
    """
    iteration = _iteration(folder)
    model = model_section(config)

    from bigtrain.convert.own_model import own_shapes
    from bigtrain.convert.safetensors_file import widest
    from bigtrain.convert.weights import Weights

    # Only its path is used.
    there = Checkpoint(iteration, TrainingState(0, 0, 0), 0, {}, {}, {})
    weights = Weights(there, prefix="")
    shapes = own_shapes(model)
    names = _names(iteration, weights.shapes, shapes)

    def read(box: Box) -> Any:
        name, index = box
        return weights.read(names[name], index)

    return bring(
        output,
        model,
        shapes,
        read,
        what=f"a checkpoint of Megatron-LM ({iteration})",
        tokenizer=tokenizer,
        origin={"megatron": iteration.resolve().name},
        dtype=widest(weights.dtypes[name] for name in names.values()),
    )


def model_section(path: Path) -> ModelConfig:
    """The `model` section of a configuration file that need not hold another.

    Raises:
        ConfigError: It cannot be read, or says what cannot be.
    """
    section = merge(file_layers(path)).get("model", {})
    training = {"output_dir": "-", "steps": 1, "global_batch_size": 1, "sequence_length": 1}
    return parse_config({"model": section, "data": {"train": "-"}, "training": training}).model


def _iteration(folder: Path) -> Path:
    """The folder with the tensors: of the latest iteration, where several lie in `folder`."""
    if not folder.is_dir():
        raise ConversionError(f"{folder}: no such folder")
    latest = folder / "latest_checkpointed_iteration.txt"
    if latest.is_file():
        word = latest.read_text(encoding="utf-8").strip()
        folder = folder / (word if word == "release" else f"iter_{int(word):07d}" if word.isdigit() else word)
    try:
        backend = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))["sharded_backend"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConversionError(
            f"{folder} is no distributed checkpoint of megatron-core: its metadata.json cannot be read ({error}). "
            "One of Megatron-LM's older kind (mp_rank_00/…) becomes one with --ckpt-convert-format torch_dist there"
        ) from None
    if backend != "torch_dist":
        raise ConversionError(f"{folder} is saved in the format {backend!r}, and torch_dist is read here")
    return folder


def _names(folder: Path, there: dict[str, tuple[int, ...]], ours: dict[str, tuple[int, ...]]) -> dict[str, str]:
    """Our names to those in the checkpoint, all of them."""
    found = {}
    for name in there:
        if not _NOT_WEIGHTS.match(name):
            own = name
            for theirs, norm in NORMS.items():
                own = own.replace(theirs, norm)
            found[own] = name
    if missing := sorted(ours.keys() - found.keys()):
        raise ConversionError(f"{folder} lacks {some(missing)}, of which the model is made")
    if extra := sorted(found[name] for name in found.keys() - ours.keys()):
        raise ConversionError(f"{folder} holds {some(extra)}, and the model that the configuration describes has none")
    for own, name in found.items():
        if there[name] != ours[own]:
            raise ConversionError(f"{folder}: {name} is {there[name]}, and the configuration makes it {ours[own]}")
    return found
