"""`bigtrain convert …`: to and from Hugging Face."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from bigtrain.cli.arguments import out

convert_app = typer.Typer(help="To and from Hugging Face.", no_args_is_help=True)

Verify = Annotated[bool, typer.Option(help="Compare both models' logits on real text; fail if they differ.")]


class Dtype(StrEnum):
    """Types of exported weights."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


@convert_app.command("to-hf")
def convert_to_hf(
    checkpoint: Annotated[str, typer.Argument(help="A run's folder (its newest checkpoint), or one step's; or a URL.")],
    output: Annotated[Path, typer.Argument(help="Folder to make.")],
    verify: Verify = True,
    dtype: Annotated[Dtype, typer.Option(help="Type of the saved weights.")] = Dtype.float32,
    tokenizer: Annotated[Path | None, typer.Option(help="Where the run's folder has none.")] = None,
    text: Annotated[Path | None, typer.Option(help="Text file to compare on, in place of the validation data.")] = None,
    family: Annotated[str | None, typer.Option(help="The model_type to write, where the model fits several.")] = None,
    vocab_size: Annotated[int | None, typer.Option(help="Rows to write; default: without padding.")] = None,
) -> None:
    """Write a checkpoint's model as a Hugging Face folder."""
    from bigtrain.checkpoint.places import place
    from bigtrain.convert.to_hf import convert_to_hf as convert

    made = convert(
        place(checkpoint),
        output,
        dtype=dtype.value,
        verify=verify,
        tokenizer=tokenizer,
        text=text,
        family=family,
        vocab_size=vocab_size,
    )
    out.print(made.describe(), markup=False)


@convert_app.command("from-hf")
def convert_from_hf(
    folder: Annotated[Path, typer.Argument(help="A Hugging Face folder.")],
    output: Annotated[Path, typer.Argument(help="Folder to make: a checkpoint, the tokenizer, a model to extend.")],
    verify: Verify = True,
    text: Annotated[Path | None, typer.Option(help="Text file to compare on.")] = None,
    vocab_size: Annotated[int | None, typer.Option(help="Pad the vocabulary to so many rows.")] = None,
) -> None:
    """Write a Hugging Face model as a checkpoint that a run can begin with."""
    from bigtrain.convert.from_hf import convert_from_hf as convert

    made = convert(folder, output, verify=verify, text=text, vocab_size=vocab_size)
    out.print(made.describe(), markup=False)
