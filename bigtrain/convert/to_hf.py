"""From a checkpoint of any layout to a folder that `transformers` loads.

What can be told without torch is told before it is imported.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bigtrain.checkpoint.catalog import Checkpoint
from bigtrain.checkpoint.find import find_best
from bigtrain.config import ModelConfig
from bigtrain.convert.families import family_of
from bigtrain.convert.output import written_aside
from bigtrain.convert.parity import Parity
from bigtrain.convert.source import find_tokenizer, model_config, run_folder, task_of
from bigtrain.data.framing import framing_of
from bigtrain.data.tokenizer import Tokenizer
from bigtrain.errors import ConversionError


@dataclass(frozen=True)
class Exported:
    """What `convert_to_hf` wrote."""

    path: Path
    checkpoint: Path
    family: str
    step: int
    parameters: int
    bytes: int
    """Of the weights."""
    files: int
    """That hold weights."""
    padded_rows_removed: int
    """Rows of the vocabulary that no token has, and that are not written."""
    parity: Parity | None
    """The proof, where it was asked for."""

    def describe(self) -> str:
        """What was done, in a line or two."""
        rows = (
            f", {self.padded_rows_removed} padded rows of the vocabulary left out" if self.padded_rows_removed else ""
        )
        line = (
            f"{self.path}: {self.family}, {self.parameters:,} parameters of step {self.step} ({self.checkpoint}), "
            f"{self.bytes / 1e6:,.1f} MB in {self.files} file{'s' if self.files > 1 else ''}{rows}"
        )
        return f"{line}\nnot verified" if self.parity is None else f"{line}\n{self.parity.describe()}"


def convert_to_hf(
    checkpoint: Path,
    output: Path,
    *,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    verify: bool = True,
    tokenizer: Path | None = None,
    text: Path | None = None,
    family: str | None = None,
    vocab_size: int | None = None,
) -> Exported:
    """Write a checkpoint's model as a Hugging Face folder.

    Args:
        checkpoint: A run's folder (its newest complete checkpoint, or of a fine-tuned run the best), its `checkpoints`,
            or one step's folder or URL. With a task's head it must lie in its run's folder, which names the labels.
        output: The folder to make; new or empty. It appears when it is complete, and verified if that is asked.
        dtype: Type of the saved weights.
        verify: Compare the logits of both models on real text, and write `parity.json` beside the weights.
        tokenizer: The tokenizer's file or folder, where the run's folder has none.
        text: A text file to compare on; default: the run's validation data, else Python's standard library.
        family: Its `model_type` at Hugging Face; default: the one that the weights came from, or else the first of
            `families.FAMILIES` that the model fits.
        vocab_size: Rows of the vocabulary to write; default: those of the model that the weights came from, or else
            as many as the tokenizer has tokens.

    Raises:
        CheckpointError: There is no such checkpoint, or it is incomplete or damaged.
        ConversionError: The model is not of a family that can be exported, the output cannot be written, or the
            two models do not agree. Nothing is left behind.
        DataError: The tokenizer or the text cannot be read.
    """
    source = find_best(checkpoint)
    model = model_config(source)
    run = run_folder(source, checkpoint)
    task = task_of(run)
    if task is not None:  # whose head takes the place of pretraining's
        model = model.model_copy(update={"add_pooling_layer": False})
    chosen = family_of(model, family, source.origin.get("family"))
    tokens = find_tokenizer(run, tokenizer, model)
    rows = _rows(source, model, tokens, vocab_size)
    framing = framing_of(model, tokens) if task is not None or model.architecture != "gpt" else None
    with written_aside(output) as folder:
        from bigtrain.convert.card import write_card
        from bigtrain.convert.export import write_model
        from bigtrain.convert.verify import check_memory, verify_export

        if verify:
            check_memory(model)
        shape = model.model_copy(update={"vocab_size": rows})
        written = write_model(source, shape, chosen, dtype, tokens, folder, framing=framing, task=task)
        parity = None
        if verify:
            parity = verify_export(source, folder, tokens, text, run, framing=framing, task=task)
        write_card(folder, source, chosen, run, written, parity)
    return Exported(
        path=output,
        checkpoint=source.path,
        family=chosen.name,
        step=source.state.step,
        parameters=written.parameters,
        bytes=written.bytes,
        files=written.files,
        padded_rows_removed=model.vocab_size - rows,
        parity=parity,
    )


def _rows(source: Checkpoint, model: ModelConfig, tokenizer: Tokenizer, asked: int | None) -> int:
    """How many rows of the vocabulary are written."""
    if asked is None:
        return min(source.origin.get("vocab_size", tokenizer.vocab_size), model.vocab_size)
    if not tokenizer.vocab_size <= asked <= model.vocab_size:
        raise ConversionError(
            f"vocab_size is {asked}; it must hold the tokenizer's {tokenizer.vocab_size} tokens, and be one of the "
            f"model's {model.vocab_size} rows at most"
        )
    return asked
