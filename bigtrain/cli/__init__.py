"""The command line: parses and calls, decides nothing.

Each command imports what it runs when it runs, so that a mistake in a configuration is told before
torch is loaded.
"""

import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from bigtrain import __version__
from bigtrain.cli.arguments import ConfigFile, Overrides, out
from bigtrain.cli.convert import convert_app
from bigtrain.cli.data import data_app
from bigtrain.cli.evaluate import evaluate
from bigtrain.cli.explain import explain
from bigtrain.cli.generate import generate
from bigtrain.cli.jobs import logs, status, stop, submit
from bigtrain.cli.runs import finetune, pretrain
from bigtrain.cli.tokenizer import tokenizer_app
from bigtrain.cli.verify import verify_layouts, verify_masks
from bigtrain.errors import EXIT_USER_ERROR, LaunchError, UserError
from bigtrain.training import faults

app = typer.Typer(
    name="bigtrain",
    help="Pretrain language models with Megatron-core, DeepSpeed ZeRO and Arrow shards.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
config_app = typer.Typer(help="Look at configurations.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(tokenizer_app, name="tokenizer")
app.add_typer(convert_app, name="convert")
app.add_typer(config_app, name="config")


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


app.command()(pretrain)
app.command()(finetune)


@config_app.command("show")
def config_show(config: ConfigFile, overrides: Overrides = None) -> None:
    """Print the configuration with every default spelled out."""
    from bigtrain.config import to_yaml
    from bigtrain.finetune.load import load_task_config

    out.print(to_yaml(load_task_config(config, overrides or [])), end="", markup=False)


@app.command()
def report(run: Annotated[Path, typer.Argument(help="A run's folder.")]) -> None:
    """Draw a run's loss curve and write RUN/report.html; the run may still be going."""
    from bigtrain.report.build import report as build

    made = build(run)
    out.print(made.curve, markup=False)
    for label, value in made.summary.rows():
        out.print(f"{label:<28}{value}", markup=False)
    out.print(f"{made.png}\n{made.page}", markup=False)


app.command()(generate)
app.command()(evaluate)
app.command()(explain)
app.command()(submit)
app.command()(status)
app.command()(stop)
app.command()(logs)
app.command("verify-layouts")(verify_layouts)
app.command("verify-masks")(verify_masks)


@app.command()
def doctor(
    config: Annotated[
        Path | None, typer.Argument(metavar="CONFIG", help="YAML file: look at all nodes of this Slurm job for it.")
    ] = None,
    overrides: Overrides = None,
    time_limit: Annotated[int, typer.Option(help="Seconds in which the nodes must have answered.", min=10)] = 120,
) -> None:
    """Tell what was found on this machine, and why a thing is not used.

    With CONFIG, in a Slurm job: whether its nodes are fit for the run, alike, and talk to one another; exit code 2 and
    what to exclude if not.
    """
    from rich.table import Table

    if config is not None:
        _doctor_of_nodes(config, overrides, time_limit)
    from bigtrain.launch.doctor import diagnose

    table = Table("", "found", "used", "", box=None)
    for finding in diagnose():
        table.add_row(finding.name, finding.found, "yes" if finding.used else "no", finding.reason)
    out.print(table)


def _doctor_of_nodes(config: Path, overrides: list[str] | None, seconds: int) -> NoReturn:
    from rich.table import Table
    from rich.text import Text

    from bigtrain.config import load_config, validate
    from bigtrain.launch.checkup import checkup
    from bigtrain.launch.job import allocation, is_batch_step

    loaded = load_config(config, overrides or [])
    if not is_batch_step(os.environ):
        raise LaunchError(
            "this is no Slurm job's shell or batch script: there are no nodes to look at. `salloc --nodes=2` opens "
            "one; `bigtrain doctor` without CONFIG looks at this machine"
        )
    given = allocation(loaded, None, os.environ)
    validate(loaded, (len(given.nodes) - loaded.launch.spare_nodes) * given.nproc)
    report = checkup(loaded, given.nodes, srun_options=given.srun_options, python=given.python, seconds=float(seconds))
    table = Table("nodes", "", "found", "", box=None)
    for row in report.rows():
        table.add_row(report.named(row.nodes), row.what, Text(row.found), row.kind)
    out.print(table)
    out.print(*(report.advice() or ["all fit"]), sep="\n", markup=False)
    sys.exit(0 if report.ok else EXIT_USER_ERROR)


@app.command()
def version() -> None:
    """Print the version."""
    out.print(__version__)
