"""The adapters of a run (`finetune.lora`) as a folder that `peft` loads onto the model that the run began with."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig

from bigtrain.checkpoint.find import find_best
from bigtrain.config import ModelConfig
from bigtrain.config.tasks import FinetuneConfig
from bigtrain.convert.adapter import write_adapter
from bigtrain.convert.classes import task_keys, weights_with_head
from bigtrain.convert.export import model_shapes
from bigtrain.convert.families import family_of
from bigtrain.convert.family import Family
from bigtrain.convert.mapping import Piece, WeightMap, module_rows, pieces_of
from bigtrain.convert.output import written_aside
from bigtrain.convert.source import model_config, run_folder, task_of
from bigtrain.convert.weights import Weights
from bigtrain.errors import ConversionError
from bigtrain.models.heads import HEAD, POOLER

Pairs = dict[str, tuple[Tensor, Tensor]]
TASK_TYPES = {
    "gpt": "CAUSAL_LM",
    "t5": "SEQ_2_SEQ_LM",
    "classification": "SEQ_CLS",
    "regression": "SEQ_CLS",
    "tagging": "TOKEN_CLS",
    "question_answering": "QUESTION_ANS",
}
"""`peft`'s words for what a model does: by its task's head, or else by its architecture."""


@dataclass(frozen=True)
class Adapters:
    """What `convert_to_adapter` wrote."""

    path: Path
    checkpoint: Path
    step: int
    matrices: int
    parameters: int

    def describe(self) -> str:
        """What was done, and what to do with it."""
        return (
            f"{self.path}: adapters of {self.matrices} matrices, {self.parameters:,} parameters of step {self.step} "
            f"({self.checkpoint})\nload them with peft.PeftModel.from_pretrained(MODEL, {str(self.path)!r}), where "
            "MODEL is the one that the run began with"
        )


def convert_to_adapter(checkpoint: Path, output: Path, *, family: str | None = None) -> Adapters:
    """Write the adapters of a run alone, with its task's head if it has one, as `peft` saves them.

    Args:
        checkpoint: A run's folder (its newest complete checkpoint, or of a fine-tuned run the best), its `checkpoints`,
            or one step's folder or URL. With a task's head it must lie in its run's folder, which names the labels.
        output: The folder to make; new or empty.
        family: The `model_type` of the model that they are for; default: the one that the weights came from, or else
            the first that the model fits.

    Raises:
        CheckpointError: There is no such checkpoint, or it is incomplete or damaged.
        ConversionError: It has no adapters, or is of no family.
    """
    source = find_best(checkpoint)
    if "lora" not in source.trained:
        raise ConversionError(f"{source.path} has no adapters: finetune.lora was not set when it was trained")
    task = task_of(run_folder(source, checkpoint))
    model = model_config(source)
    if task is not None:
        model = model.model_copy(update={"add_pooling_layer": False})
    chosen = family_of(model, family, source.origin.get("family"))
    names, weights = _names(chosen, model, task), Weights(source)
    pairs = adapter_pairs(weights, model, names)
    heads = [ours for ours in weights.shapes if task is not None and ours.startswith((HEAD, POOLER))]
    whole = {theirs: weights.read(ours) for ours in heads for theirs in names[ours]}
    with written_aside(output) as folder:
        write_adapter(
            folder,
            pairs,
            alpha=source.trained["lora"]["lora_alpha"],
            base_model=source.origin.get("folder", ""),
            target_modules=_short_names(pairs, names),
            task_type=TASK_TYPES.get(model.architecture if task is None or task.task is None else task.task),
            turned=any(cut.transposed for row in names.values() for cut in row.values()),
            whole=whole,
        )
    parameters = sum(tensor.numel() for tensors in (*pairs.values(), whole.values()) for tensor in tensors)
    return Adapters(output, source.path, source.state.step, len(pairs), parameters)


def _names(family: Family, model: ModelConfig, task: FinetuneConfig | None) -> WeightMap:
    """What the family calls our weights, a task's head among them."""
    if task is None:
        return family.weights
    config = AutoConfig.for_model(**family.config(model) | task_keys(family, task))
    return weights_with_head(family, config, model_shapes(config, family.buffers))


def adapter_pairs(weights: Weights, model: ModelConfig, names: WeightMap) -> Pairs:
    """A and B of every matrix of a family that has adapters.

    Where a matrix of the family holds several of our modules it gets one adapter of all, in whose B each row has
    numbers in the columns of its module alone: of rank r times so many.
    """
    shapes = {name: weights.shapes[name] for name in weights.adapted}
    found: Pairs = {}
    for name, piece in pieces_of({ours: names[ours] for ours in shapes}, model, shapes).items():
        if parts := list(_parts(weights, model, piece, shapes[piece.source][1])):
            firsts, seconds = zip(*parts, strict=True)
            found[name] = torch.cat(firsts), torch.cat(seconds, dim=1)
    return found


def _parts(weights: Weights, model: ModelConfig, piece: Piece, height: int) -> Iterator[tuple[Tensor, Tensor]]:
    """A, and B with zeros in the rows of others, of every module that a family's matrix holds some of."""
    everything = np.arange(height)
    theirs = everything if piece.cut.rows is None else piece.cut.rows(model)
    for module in weights.adapted[piece.source]:
        ours = module_rows(piece.source.split(".")[-2], module, model)
        place = np.full(height, -1)
        place[everything if ours is None else ours] = np.arange(height if ours is None else len(ours))
        rows = place[theirs]
        if (rows >= 0).any():
            first, second = weights.adapter(piece.source, module, piece.index[0])
            spread = second.new_zeros(len(theirs), second.shape[1])
            spread[rows >= 0] = second[rows[rows >= 0]]
            yield first, spread


def _short_names(pairs: Mapping[str, object], names: WeightMap) -> list[str]:
    """The last parts of the modules' names, where all modules of the family with this last part are meant."""
    modules = [name.removesuffix(".weight") for name in pairs]
    kinds: dict[str, set[str]] = defaultdict(set)
    for row in names.values():
        for name in row:
            kinds[name.removesuffix(".weight").rpartition(".")[2]].add(name)
    short = {module.rpartition(".")[2] for module in modules}
    return [*short] if all(len(kinds[last]) == 1 for last in short) else modules
