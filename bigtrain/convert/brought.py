"""A folder with a checkpoint of weights that were brought from elsewhere, its tokenizer, and a model to extend."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigtrain.checkpoint.catalog import TrainingState
from bigtrain.config import ModelConfig
from bigtrain.convert.from_hf import write_model_file
from bigtrain.convert.output import written_aside
from bigtrain.convert.source import MODEL_FILE
from bigtrain.data.tokenizer import copy_tokenizer, load_tokenizer
from bigtrain.errors import ConversionError
from bigtrain.models.size import parameter_count

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Box = tuple[str, tuple[int, ...]]


@dataclass(frozen=True)
class Brought:
    """What was written."""

    path: Path
    what: str
    """What it was made of."""
    parameters: int

    def describe(self) -> str:
        """What was done, and what to do with it."""
        line = f"{self.path}: {self.parameters:,} parameters of {self.what}"
        return f"{line}\ntrain on from it with a configuration that says `extends: {self.path / MODEL_FILE}`"


def bring(
    output: Path,
    model: ModelConfig,
    shapes: Mapping[str, tuple[int, ...]],
    read: "Callable[[Box], Tensor]",
    *,
    what: str,
    tokenizer: Path | None,
    origin: Mapping[str, Any],
    dtype: "torch.dtype | None" = None,
    state: TrainingState | None = None,
) -> Brought:
    """Write the folder.

    Args:
        output: New or empty; it appears when it is complete.
        model: The model's shape.
        shapes: Our weights and their global shapes, as a model of this shape has them.
        read: Gives a part of a weight, without the axes of its index; threads call it at the same time.
        what: What the weights are, in words.
        tokenizer: The tokenizer's file or folder, if there is one.
        origin: Where they come from, for the checkpoint's marker.
        dtype: Type that the weights are written in; default: float32.
        state: Where the run stood; default: at its beginning.

    Raises:
        ConversionError: The output cannot be written, or the tokenizer is another model's.
        DataError: The tokenizer cannot be read.
    """
    import torch

    from bigtrain.convert.arriving import START, boxes_of, write_checkpoint

    tokens = None if tokenizer is None else load_tokenizer(tokenizer)
    if tokens is not None and tokens.vocab_size > model.vocab_size:
        raise ConversionError(
            f"{tokens.path} has {tokens.vocab_size} tokens and the model {model.vocab_size} rows: it is another model's"
        )
    with written_aside(output) as aside:
        if tokens is not None:
            (aside / "tokenizer").mkdir()
            copy_tokenizer(tokens, aside / "tokenizer")
        write_checkpoint(
            aside / "checkpoints",
            model,
            shapes,
            boxes_of(shapes),
            read,
            origin=lambda: origin,
            dtype=dtype or torch.float32,
            state=state or START,
        )
        write_model_file(aside / MODEL_FILE, model, output)
    return Brought(output, what, parameter_count(model))
