"""`bigtrain convert …`: to and from Hugging Face."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from bigtrain.cli.arguments import out

convert_app = typer.Typer(help="To and from Hugging Face.", no_args_is_help=True)

Verify = Annotated[bool, typer.Option(help="Compare both models' logits on real text; fail if they differ.")]


Tokenizer = Annotated[Path | None, typer.Option(help="The tokenizer's file or folder, where there is none.")]


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
    adapter: Annotated[bool, typer.Option("--adapter", help="Adapters alone, for peft; default: merged.")] = False,
) -> None:
    """Write a checkpoint's model as a Hugging Face folder; of a fine-tuned run its best, with its head."""
    from bigtrain.checkpoint.places import place

    if adapter:
        from bigtrain.convert.adapted import convert_to_adapter

        out.print(convert_to_adapter(place(checkpoint), output, family=family).describe(), markup=False)
        return
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
    adapter: Annotated[Path | None, typer.Option(help="Folder of a LoRA adapter to merge, as peft saves it.")] = None,
) -> None:
    """Write a Hugging Face model as a checkpoint that a run can begin with."""
    from bigtrain.convert.from_hf import convert_from_hf as convert
    from bigtrain.convert.merge import with_adapter

    with with_adapter(folder, adapter, output) as taken:
        made = convert(taken, output, verify=verify, text=text, vocab_size=vocab_size)
    out.print(made.describe(), markup=False)


@convert_app.command("merge-adapter")
def merge_adapter(
    folder: Annotated[Path, typer.Argument(help="A Hugging Face folder.")],
    adapter: Annotated[Path, typer.Argument(help="Folder of a LoRA adapter, as peft saves it.")],
    output: Annotated[Path, typer.Argument(help="Folder to make.")],
) -> None:
    """Write a Hugging Face folder with a LoRA adapter merged into its weights."""
    from bigtrain.convert.merge import merge_adapter as merge

    count = merge(folder, adapter, output)
    out.print(f"{output}: {folder} with {count} weights adapted by {adapter}", markup=False)


@convert_app.command("to-weights")
def convert_to_weights(
    checkpoint: Annotated[str, typer.Argument(help="A run's folder (its newest checkpoint), or one step's; or a URL.")],
    output: Annotated[Path, typer.Argument(help="Folder of safetensors to make, or a file that ends in .pt.")],
    dtype: Annotated[Dtype, typer.Option(help="Type of the saved weights.")] = Dtype.float32,
) -> None:
    """Write a checkpoint's weights alone, under our own names."""
    from bigtrain.checkpoint.places import place
    from bigtrain.convert.weight_files import convert_to_weights as convert

    made = convert(place(checkpoint), output, dtype=dtype.value)
    out.print(f"{output}: {made.parameters:,} parameters, {made.bytes / 1e6:,.1f} MB", markup=False)


@convert_app.command("from-weights")
def convert_from_weights(
    source: Annotated[Path, typer.Argument(help="A folder or .pt that to-weights made.")],
    output: Annotated[Path, typer.Argument(help="Folder to make: a checkpoint, the tokenizer, a model to extend.")],
    tokenizer: Tokenizer = None,
) -> None:
    """Write weights of our own names as a checkpoint that a run can begin with."""
    from bigtrain.convert.weight_files import convert_from_weights as convert

    out.print(convert(source, output, tokenizer=tokenizer).describe(), markup=False)


@convert_app.command("from-megatron")
def convert_from_megatron(
    folder: Annotated[Path, typer.Argument(help="Where Megatron-LM saved, or one iteration of it (torch_dist).")],
    output: Annotated[Path, typer.Argument(help="Folder to make: a checkpoint, the tokenizer, a model to extend.")],
    config: Annotated[Path, typer.Option(help="YAML file whose `model` section describes the model.")],
    tokenizer: Tokenizer = None,
) -> None:
    """Write a Megatron-LM checkpoint as one that a run can begin with."""
    from bigtrain.convert.from_megatron import convert_from_megatron as convert

    out.print(convert(folder, output, config=config, tokenizer=tokenizer).describe(), markup=False)


@convert_app.command("average")
def average_checkpoints(
    run: Annotated[Path, typer.Argument(help="A run's folder.")],
    output: Annotated[Path, typer.Argument(help="Folder to make: a checkpoint, the tokenizer, a model to extend.")],
    last: Annotated[int | None, typer.Option(help="So many of the newest checkpoints; default: all.")] = None,
    step: Annotated[list[int] | None, typer.Option(help="One of the steps; in place of --last, several times.")] = None,
    ema: Annotated[float | None, typer.Option(help="Decay of an exponential mean; default: the uniform one.")] = None,
) -> None:
    """Write the mean of a run's checkpoints as a new one."""
    from bigtrain.convert.average import average

    out.print(average(run, output, last=last, steps=step or (), decay=ema).describe(), markup=False)
