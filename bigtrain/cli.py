"""The command line: parses and calls, decides nothing.

Each command imports what it runs when it runs, so that a mistake in a configuration is told before
torch is loaded.
"""

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bigtrain import __version__
from bigtrain.errors import EXIT_USER_ERROR, UserError
from bigtrain.training import faults

app = typer.Typer(
    name="bigtrain",
    help="Pretrain language models with Megatron-core, DeepSpeed ZeRO and Arrow shards.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
data_app = typer.Typer(help="Make and look at datasets.", no_args_is_help=True)
tokenizer_app = typer.Typer(help="Train tokenizers.", no_args_is_help=True)
convert_app = typer.Typer(help="To and from Hugging Face.", no_args_is_help=True)
config_app = typer.Typer(help="Look at configurations.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(tokenizer_app, name="tokenizer")
app.add_typer(convert_app, name="convert")
app.add_typer(config_app, name="config")

out = Console(soft_wrap=True, highlight=False)


class Dtype(StrEnum):
    """Types of exported weights."""

    float32 = "float32"
    bfloat16 = "bfloat16"


class Precision(StrEnum):
    """Types of weights and activations."""

    fp32 = "fp32"
    bf16 = "bf16"


class TokenizerType(StrEnum):
    """Kinds of SentencePiece models."""

    bpe = "bpe"
    unigram = "unigram"


ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file.")]
Pattern = Annotated[str, typer.Option(help="File names to take from folders.")]
Exclude = Annotated[list[str] | None, typer.Option(help="Folder or file names to leave out.")]
Nproc = Annotated[int, typer.Option(help="Processes to share the work among, on this machine.", min=1)]
Certificate = Annotated[Path | None, typer.Option(help="Where to write what was found, as JSON.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[key=value ...]", help="Such as parallel.tensor=2.")]


def main() -> None:
    """Run a command; a user's mistake is one message and exit code 2."""
    try:
        app()
    except Exception as error:
        if "RANK" in os.environ:
            faults.leave(error)  # one of several: what Python does at the end may wait for the others
        if not isinstance(error, UserError):
            raise
        Console(stderr=True, soft_wrap=True, highlight=False).print(f"[bold red]error:[/] {_plain(str(error))}")
        sys.exit(EXIT_USER_ERROR)


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


@app.command()
def pretrain(
    config: ConfigFile,
    overrides: Overrides = None,
    nproc: Annotated[
        int | None,
        typer.Option(
            help="Processes on this machine; default: one a GPU, else as many as one copy of the model needs."
        ),
    ] = None,
) -> None:
    """Pretrain, or continue a run whose folder is there already."""
    from bigtrain.config import load_config, validate
    from bigtrain.launch.environment import world_from_environment
    from bigtrain.launch.local import run_workers

    loaded = load_config(config, overrides or [])
    world = world_from_environment(nproc, os.environ, loaded.parallel.model_parallel_size)
    validate(loaded, world.world_size)
    if not world.is_worker:
        from bigtrain.training.preflight import preflight

        preflight(loaded)  # before torch is loaded and processes are started
    if world.is_worker or world.world_size == 1:
        from bigtrain.training.pretrain import pretrain as run

        sys.exit(run(loaded))
    sys.exit(
        run_workers(
            [sys.executable, "-m", "bigtrain", "pretrain", str(config), *(overrides or [])],
            world,
            log_dir=Path(loaded.training.output_dir) / "logs",
        )
    )


@config_app.command("show")
def config_show(config: ConfigFile, overrides: Overrides = None) -> None:
    """Print the configuration with every default spelled out."""
    from bigtrain.config import load_config, to_yaml

    out.print(to_yaml(load_config(config, overrides or [])), end="", markup=False)


@tokenizer_app.command("train")
def tokenizer_train(
    inputs: Annotated[list[Path], typer.Argument(help="Files or folders of text.")],
    output: Annotated[Path, typer.Option(help="The SentencePiece model to write (.model).")],
    vocab_size: Annotated[int, typer.Option(help="Pieces.")],
    pattern: Pattern = "*",
    exclude: Exclude = None,
    model_type: Annotated[TokenizerType, typer.Option(help="Kind of model.")] = TokenizerType.bpe,
    sample_megabytes: Annotated[float, typer.Option(help="Text to learn from, taken from all over it.")] = 8,
    validation_fraction: Annotated[float, typer.Option(help="What `data prepare` will hold out.")] = 0.0,
) -> None:
    """Train a SentencePiece tokenizer."""
    from bigtrain.data.text import read_documents
    from bigtrain.data.tokenizer import load_tokenizer, train_sentencepiece

    texts = read_documents(
        inputs,
        pattern=pattern,
        exclude=exclude or (),
        max_bytes=int(sample_megabytes * 1e6),
        held_out_fraction=validation_fraction,
    )
    train_sentencepiece(texts, output, vocab_size, model_type=model_type.value)
    out.print(f"{output}: {load_tokenizer(output).vocab_size:,} pieces")


@data_app.command("prepare")
def data_prepare(
    inputs: Annotated[list[Path], typer.Argument(help="Files or folders of text or JSON lines.")],
    output: Annotated[Path, typer.Option(help="Folder to make: OUTPUT/train, OUTPUT/validation.")],
    tokenizer: Annotated[Path, typer.Option(help="SentencePiece model or tokenizer.json.")],
    pattern: Pattern = "*",
    exclude: Exclude = None,
    text_key: Annotated[str, typer.Option(help="Field of a JSON line that holds the text.")] = "text",
    validation_fraction: Annotated[float, typer.Option(help="Share of the documents to hold out.")] = 0.0,
    workers: Annotated[int | None, typer.Option(help="Processes; default: one a core.")] = None,
) -> None:
    """Tokenise text into Arrow shards."""
    from bigtrain.data.prepare import prepare

    made = prepare(
        inputs,
        output,
        tokenizer,
        pattern=pattern,
        exclude=exclude or (),
        text_key=text_key,
        validation_fraction=validation_fraction,
        workers=workers,
    )
    for name, part in (("train", made.train), ("validation", made.validation)):
        if part is not None:
            out.print(f"{output / name}: {part.documents:,} documents, {part.tokens:,} tokens, {part.bytes:,} bytes")
    if made.rejected:
        out.print(f"{made.rejected:,} left out, listed in {output / 'rejects.jsonl'}")


@data_app.command("inspect")
def data_inspect(
    dataset: Annotated[Path, typer.Argument(help="Folder with a dataset.json.")],
    documents: Annotated[int, typer.Option(help="How many to show.")] = 3,
) -> None:
    """Show what is in a dataset."""
    from bigtrain.data.inspect import inspect

    found = inspect(dataset, documents)
    made = found.manifest
    out.print(
        f"{made.documents:,} documents, {made.tokens:,} tokens ({made.dtype}), {made.bytes:,} bytes of text, "
        f"{len(made.shards)} shards\n"
        f"document lengths: {found.shortest:,} to {found.longest:,} tokens, median {found.median:,.0f}; "
        f"{found.bytes_per_token:.2f} bytes a token\n"
        f"tokenizer {made.tokenizer.file}: {made.tokenizer.vocab_size:,} pieces, sha256 {made.tokenizer.fingerprint}"
    )
    for document in found.first_documents:
        out.rule(f"{document.source} #{document.position}, {document.tokens:,} tokens", align="left")
        out.print(document.text[:400], markup=False)


@data_app.command("verify")
def data_verify(dataset: Annotated[Path, typer.Argument(help="Folder with a dataset.json.")]) -> None:
    """Read a whole dataset and compare its checksums."""
    from bigtrain.data.shards import verify

    manifest = verify(dataset)
    out.print(f"{dataset}: {len(manifest.shards)} shards, {manifest.tokens:,} tokens, all as written")


@convert_app.command("to-hf")
def convert_to_hf(
    checkpoint: Annotated[str, typer.Argument(help="A run's folder (its newest checkpoint), or one step's; or a URL.")],
    output: Annotated[Path, typer.Argument(help="Folder to make.")],
    verify: Annotated[bool, typer.Option(help="Compare both models' logits on real text; fail if they differ.")] = True,
    dtype: Annotated[Dtype, typer.Option(help="Type of the saved weights.")] = Dtype.float32,
    tokenizer: Annotated[Path | None, typer.Option(help="Where the run's folder has none.")] = None,
    text: Annotated[Path | None, typer.Option(help="Text file to compare on, in place of the validation data.")] = None,
) -> None:
    """Write a checkpoint's model as a Hugging Face folder."""
    from bigtrain.checkpoint.places import place
    from bigtrain.convert.to_hf import convert_to_hf as convert

    made = convert(place(checkpoint), output, dtype=dtype.value, verify=verify, tokenizer=tokenizer, text=text)
    out.print(made.describe(), markup=False)


@app.command()
def generate(
    model: Annotated[Path, typer.Argument(help="Hugging Face folder.")],
    prompt: Annotated[list[str], typer.Option(help="Text to continue; may be given several times.")],
    max_new_tokens: Annotated[int, typer.Option(help="Longest continuation.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token always.")] = 0.8,
    top_k: Annotated[int, typer.Option(help="Draw among so many likeliest tokens; 0: among all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Draw among the likeliest tokens of this total probability.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Decides what is drawn.")] = 0,
) -> None:
    """Continue text with an exported model."""
    from bigtrain.evaluate.generate import generate as continue_prompts

    continued = continue_prompts(
        model, prompt, max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed
    )
    for begin, end in zip(prompt, continued, strict=True):
        out.print(begin, style="bold", end="", markup=False)
        out.print(end, markup=False)


@app.command()
def report(run: Annotated[Path, typer.Argument(help="A run's folder.")]) -> None:
    """Draw a run's loss curve and write RUN/report.html; the run may still be going."""
    from bigtrain.report.build import report as build

    made = build(run)
    out.print(made.curve, markup=False)
    for label, value in made.summary.rows():
        out.print(f"{label:<28}{value}", markup=False)
    out.print(f"{made.png}\n{made.page}", markup=False)


@app.command("verify-layouts")
def verify_layouts(
    config: ConfigFile,
    overrides: Overrides = None,
    nproc: Nproc = 4,
    steps: Annotated[int, typer.Option(help="Of each layout.", min=1)] = 5,
    precision: Annotated[Precision, typer.Option(help="Type of weights and activations.")] = Precision.fp32,
    resume: Annotated[bool, typer.Option("--resume", help="Carry one run through all layouts instead.")] = False,
    certificate: Certificate = None,
) -> None:
    """Train a small copy of the configuration under every legal layout, and compare with one process.

    A layout option that is given as parallel.KEY=VALUE is not varied.
    """
    from bigtrain.config import load_config
    from bigtrain.verify import layouts_agree
    from bigtrain.verify.tables import arrow_table, row_table

    loaded = load_config(config, overrides or [])
    pinned = [
        word.partition("=")[0].removeprefix("parallel.") for word in overrides or [] if word.startswith("parallel.")
    ]
    if resume:
        chain = layouts_agree.verify_resume(loaded, nproc, pinned, steps, precision.value)
        out.print(arrow_table(chain.arrows), row_table(chain.rows))
        found, agrees = chain.to_json(), chain.holds
    else:
        verdict = layouts_agree.verify_layouts(loaded, nproc, _pinned(overrides), steps, precision.value)
        out.print(
            row_table(verdict.rows, verdict.failed), f"one process that sums in other orders: {verdict.control:.1e}"
        )
        found, agrees = verdict.to_json(), verdict.all_agree
    if certificate:
        certificate.write_text(found)
    out.print("all agree" if agrees else "[bold red]not all agree[/]")
    sys.exit(0 if agrees else 1)


@app.command("verify-masks")
def verify_masks(
    config: ConfigFile,
    overrides: Overrides = None,
    nproc: Nproc = 4,
    certificate: Certificate = None,
) -> None:
    """Show that no token sees a later one, nor another document, in any layout of a small copy of the configuration.

    A layout option that is given as parallel.KEY=VALUE is not varied.
    """
    from bigtrain.config import load_config
    from bigtrain.verify import masks
    from bigtrain.verify.tables import mask_table

    found = masks.verify_masks(load_config(config, overrides or []), nproc, _pinned(overrides))
    out.print(mask_table(found.rows, found.failed))
    if certificate:
        certificate.write_text(found.to_json())
    out.print("nothing leaks" if found.all_tight else "[bold red]not all is tight[/]")
    sys.exit(0 if found.all_tight else 1)


def _pinned(overrides: list[str] | None) -> list[str]:
    keys = [word.partition("=")[0] for word in overrides or []]
    return [key.removeprefix("parallel.") for key in keys if key.startswith("parallel.")]


@app.command()
def doctor() -> None:
    """Tell what was found on this machine, and why a thing is not used."""
    from rich.table import Table

    from bigtrain.launch.doctor import diagnose

    table = Table("", "found", "used", "", box=None)
    for finding in diagnose():
        table.add_row(finding.name, finding.found, "yes" if finding.used else "no", finding.reason)
    out.print(table)


@app.command()
def version() -> None:
    """Print the version."""
    out.print(__version__)
