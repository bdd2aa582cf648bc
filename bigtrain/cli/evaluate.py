"""`bigtrain evaluate`: the scores of a model's predictions."""

import json
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from rich.table import Table

from bigtrain.cli.arguments import out
from bigtrain.config.tasks import Task
from bigtrain.errors import UserError

TaskName = StrEnum("TaskName", {name: name for name in get_args(Task)})  # type: ignore[misc]


def evaluate(
    predictions: Annotated[Path, typer.Argument(help="JSON lines with `predicted` and what is right.")],
    task: Annotated[TaskName, typer.Option(help="What was predicted.")],
    labels: Annotated[
        Path | None, typer.Option(help="Examples with what is right, where the predictions do not say it.")
    ] = None,
    against: Annotated[
        Path | None, typer.Option(help="Another model's predictions of the same examples, to test the difference.")
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option("--column", metavar="NAME=COLUMN", help="What a column of --labels is called: label=stars."),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for the results; default: that of PREDICTIONS.")] = None,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
) -> None:
    """Score predictions: a table here, all figures as JSON, and a page with pictures."""
    from bigtrain.config.tasks import columns_of
    from bigtrain.evaluate.compare import compare
    from bigtrain.evaluate.predictions import read_predictions
    from bigtrain.evaluate.score import score

    kind: Any = task.value
    named = columns_of(columns or [])
    found = read_predictions(predictions, kind, labels, named)
    differences = []
    if against is not None:
        differences = [asdict(row) for row in compare(read_predictions(against, kind, labels, named), found, seed)]
    show(score(found, seed).as_json(), differences, output or predictions.parent, predictions.stem)


def show(scores: dict[str, Any], differences: list[dict[str, Any]], folder: Path, stem: str) -> None:
    """Print scores as a table, and write them as JSON and as a page."""
    from bigtrain.report.scores import class_rows, difference_rows, figures, scores_page

    table = Table("", f"{scores['examples']:,} examples", box=None, highlight=False)
    for name, value in figures(scores):
        table.add_row(name, value)
    out.print(table)
    for title, rows in (("class", class_rows(scores)), ("difference", difference_rows(differences))):
        if rows:
            table = Table(title, "", box=None, highlight=False)
            for name, value in rows:
                table.add_row(name, value)
            out.print(table)
    out.print(*scores["notes"], sep="\n", markup=False)
    page, file = folder / f"{stem}.html", folder / f"{stem}.scores.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({**scores, "differences": differences}, indent=2, allow_nan=False) + "\n", "utf-8")
        page.write_text(scores_page(scores, differences), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{error.filename} cannot be written: {error.strerror}") from None
    out.print(f"{file}\n{page}", markup=False)
