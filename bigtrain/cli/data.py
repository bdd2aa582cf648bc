"""`bigtrain data …`: make datasets, and look at them."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from bigtrain.cli.arguments import Exclude, Overrides, Pattern, out
from bigtrain.errors import ConfigError

data_app = typer.Typer(help="Make and look at datasets.", no_args_is_help=True)


@data_app.command("prepare")
def data_prepare(
    inputs: Annotated[list[Path], typer.Argument(help="Files or folders of text, JSON lines, Parquet or Arrow.")],
    output: Annotated[Path, typer.Option(help="Folder to make: OUTPUT/train, OUTPUT/validation.")],
    tokenizer: Annotated[Path, typer.Option(help="SentencePiece model, tokenizer.json or tiktoken file.")],
    pattern: Pattern = "*",
    exclude: Exclude = None,
    text_key: Annotated[str, typer.Option(help="Field of a JSON line, or column, that holds the text.")] = "text",
    validation_fraction: Annotated[float, typer.Option(help="Share of the documents to hold out.")] = 0.0,
    workers: Annotated[int | None, typer.Option(help="Processes; default: one a core.")] = None,
    max_document_megabytes: Annotated[float, typer.Option(help="What is larger is left out.")] = 64.0,
    task: Annotated[int | None, typer.Option(help="Number of this task, from 0; default: Slurm's.")] = None,
    tasks: Annotated[int | None, typer.Option(help="Tasks that share the work, on nodes of one file system.")] = None,
) -> None:
    """Tokenise text into Arrow shards; the same command again goes on where it was interrupted.

    Reads text files, JSON lines (also .gz and .zst), Parquet, Arrow, and folders of Hugging Face datasets.
    """
    from bigtrain.prepare.prepare import prepare_task

    in_step = task is None and tasks is None and "SLURM_STEP_NUM_TASKS" in os.environ  # started by srun
    environment = os.environ if in_step else {}
    with _bar() as bar:
        made = prepare_task(
            inputs,
            output,
            tokenizer,
            pattern=pattern,
            exclude=exclude or (),
            text_key=text_key,
            validation_fraction=validation_fraction,
            workers=workers,
            max_document_bytes=int(max_document_megabytes * 1e6),
            task=int(environment.get("SLURM_PROCID", task or 0)),
            tasks=int(environment.get("SLURM_STEP_NUM_TASKS", tasks or 1)),
            on_progress=bar,
        )
    if made is None:
        out.print(f"this task's share is done; the last of the tasks completes {output}")
        return
    for name, part in (("train", made.train), ("validation", made.validation)):
        if part is not None:
            out.print(f"{output / name}: {part.documents:,} documents, {part.tokens:,} tokens, {part.bytes:,} bytes")
    if made.rejected:
        out.print(f"[bold yellow]{made.rejected:,} left out[/], listed in {output / 'rejects.jsonl'}:")
        for reason, count in made.reasons.items():
            out.print(f"{count:>9,}  {reason}", markup=False)


@contextmanager
def _bar() -> Iterator[Callable[[int, int], None]]:
    """A progress bar over bytes, on a terminal."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as progress:
        number = progress.add_task("", total=None)
        yield lambda done, total: progress.update(number, completed=done, total=total)


@data_app.command("clean")
def data_clean(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="YAML file; docs/cleaning.md tells its keys.")],
    overrides: Overrides = None,
) -> None:
    """Filter, deduplicate and mask documents by a recipe; the same command again goes on where it was interrupted."""
    from bigtrain.prepare.clean_load import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    try:
        from bigtrain.prepare.clean import clean
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error.name} is missing, which cleaning needs: pip install 'bigtrain[cleaning]'") from error

    done = clean(loaded, lambda number, of, name: out.print(f"stage {number} of {of}: {name}", markup=False))
    if done.counts is None:
        out.print(f"{len(done.jobs)} jobs submitted: {', '.join(done.jobs)}; logs in {done.output / 'tasks/logs'}")
        return
    for row in done.counts:
        why = ", ".join(f"{reason} {number:,}" for reason, number in row["reasons"].items())
        changed = f"changed {row['changed']:,}" if "changed" in row else ""
        numbers = f"{row['in']:>13,} in{row['kept']:>13,} kept{row['dropped']:>13,} dropped"
        out.print(f"{row['step']:<18}{numbers}  {why}{changed}".rstrip(), markup=False)
    out.print(f"{done.output / 'documents'}, {done.output / 'report.html'}", markup=False)


@data_app.command("inspect")
def data_inspect(
    dataset: Annotated[str, typer.Argument(help="Folder with a dataset.json, or a URL.")],
    documents: Annotated[int, typer.Option(help="How many to show: the first, and as many at random.")] = 3,
    seed: Annotated[int, typer.Option(help="Draws those at random.")] = 0,
) -> None:
    """Show what is in a dataset."""
    from bigtrain.data.inspect import inspect

    found = inspect(dataset, documents, seed)
    made = found.manifest
    out.print(
        f"{made.documents:,} documents, {made.tokens:,} tokens ({made.dtype}), {made.bytes:,} bytes of text, "
        f"{len(made.shards)} shards\n"
        f"document lengths: {found.shortest:,} to {found.longest:,} tokens, median {found.median:,.0f}; "
        f"{found.bytes_per_token:.2f} bytes a token\n"
        f"tokenizer {made.tokenizer.file}: {made.tokenizer.vocab_size:,} pieces, sha256 {made.tokenizer.fingerprint}"
    )
    most = max((count for count, _ in found.histogram), default=1)
    for count, tokens in found.histogram:
        out.print(f"{tokens:>12,} tokens or more  {count:>11,}  {'█' * round(40 * count / most)}", markup=False)
    out.print("sources: " + ", ".join(f"{name} ({count:,})" for name, count in found.sources), markup=False)
    for title, some in (("first", found.first_documents), ("at random", found.random_documents)):
        for document in some:
            where = f"{title}: {document.source} #{document.position}, {document.tokens:,} tokens"
            out.print(where, style="bold", markup=False)
            out.print(document.text[:400], markup=False)


@data_app.command("verify")
def data_verify(
    dataset: Annotated[str, typer.Argument(help="Folder with a dataset.json, or a URL.")],
    cache_dir: Annotated[Path | None, typer.Option(help="Where a shard from a URL lies while it is read.")] = None,
) -> None:
    """Read a whole dataset and compare its checksums."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from bigtrain.data.cache import Cache
    from bigtrain.data.verify import verify

    columns = (TextColumn("verify"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("")
        manifest = verify(
            dataset,
            Cache(cache_dir) if cache_dir else None,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    out.print(f"{dataset}: {len(manifest.shards)} shards, {manifest.tokens:,} tokens, all as written")


@data_app.command("trace")
def data_trace(
    run: Annotated[Path, typer.Argument(help="A run's folder.")],
    step: Annotated[int, typer.Option(help="Step to look at, from 1.", min=1)],
    to: Annotated[int | None, typer.Option(help="Last step, for a range.", min=1)] = None,
    characters: Annotated[int, typer.Option(help="Of each document's text to show; 0: all.", min=0)] = 200,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a document, with the whole text.")] = False,
) -> None:
    """Show which documents a step of a run read."""
    import json
    from dataclasses import asdict

    from bigtrain.report.trace import trace

    for found in trace(run, step, to):
        if as_json:
            typer.echo(json.dumps(asdict(found), ensure_ascii=False))
            continue
        last = found.first_token + found.tokens
        part = "" if found.tokens == found.document_tokens else f" {found.first_token:,} to {last:,} of"
        where = f"step {found.step}, sample {found.position}: {found.dataset}, {found.source} #{found.record}"
        out.print(f"{where},{part} {found.document_tokens:,} tokens", style="bold", markup=False)
        out.print(found.text[: characters or None], markup=False)
