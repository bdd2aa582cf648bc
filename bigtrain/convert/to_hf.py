"""From a checkpoint of any layout to a folder that `transformers` loads.

What can be told without torch is told before it is imported.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bigtrain.convert import llama
from bigtrain.convert.output import written_aside
from bigtrain.convert.parity import Parity
from bigtrain.convert.source import find_checkpoint, find_tokenizer, model_config, run_folder


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
        checkpoint: A run's folder (its newest complete checkpoint), its `checkpoints`, or one step's folder or URL.
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
    run = run_folder(source, checkpoint)
    tokens = find_tokenizer(run, tokenizer, model)
    with written_aside(output) as folder:
        from bigtrain.convert.export import write_model
        from bigtrain.convert.verify import verify_export

        written = write_model(source, model, dtype, tokens, folder)
        parity = verify_export(source, folder, tokens, text, run) if verify else None
    return Exported(output, source.path, source.state.step, written.parameters, written.bytes, written.files, parity)
