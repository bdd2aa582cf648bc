"""`bigtrain evaluate`: the scores of a model's predictions."""

import json
import os
import sys
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from rich.table import Table

from bigtrain.cli.arguments import EarlyStopping, LengthPenalty, NumBeams, Overrides, Stopping, beams, out
from bigtrain.config.tasks import Task
from bigtrain.errors import ConfigError, UserError

if TYPE_CHECKING:
    from bigtrain.evaluate.beams import Beams

_OF_FOLDER = "config.json"
"""A run has a `config.yaml`."""
TaskName = StrEnum("TaskName", {name: name for name in get_args(Task)})  # type: ignore[misc]

_Processes = Annotated[
    int | None,
    typer.Option(
        help="Of a run: processes on this machine; default: one a GPU, else as many as one copy of the model needs.",
        min=1,
    ),
]


def evaluate(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|FOLDER|PREDICTIONS", help="A fine-tuned run, a Hugging Face folder, or JSON lines."
        ),
    ],
    data: Annotated[
        Path | None, typer.Argument(help="Of a run: the examples to judge; of a folder: a prepared dataset.")
    ] = None,
    overrides: Overrides = None,
    task: Annotated[TaskName | None, typer.Option(help="Of predictions: what was predicted.")] = None,
    labels: Annotated[
        Path | None, typer.Option(help="Examples with what is right, where predictions do not say it.")
    ] = None,
    against: Annotated[
        Path | None, typer.Option(help="Another model's predictions of the same examples, to test the difference.")
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option("--column", metavar="NAME=COLUMN", help="What a column of --labels is called: label=stars."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for the results; default: RUN/evaluation, or that of PREDICTIONS.")
    ] = None,
    sequence_length: Annotated[
        int | None,
        typer.Option(help="Of a folder: tokens of a sample; default: what the model takes, 2048 at most.", min=1),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    nproc: _Processes = None,
    num_beams: NumBeams = 1,
    length_penalty: LengthPenalty = 1.0,
    early_stopping: Stopping = EarlyStopping.false,
) -> None:
    """Have a fine-tuned run judge examples, and score what it, or another model, has predicted; or measure how well a
    language model in a Hugging Face folder predicts the text of a dataset.

    Gives a table here, and writes predictions, all figures as JSON, and a page with pictures.
    """
    from bigtrain.config.tasks import columns_of
    from bigtrain.evaluate.compare import compare
    from bigtrain.evaluate.predictions import read_predictions
    from bigtrain.evaluate.score import score

    named = columns_of(columns or [])
    if not source.exists():
        raise UserError(f"{source}: no such file or folder; give a fine-tuned run, or predictions as JSON lines")
    if (source / _OF_FOLDER).is_file():
        _score_text(source, data, sequence_length, output or source / "evaluation", seed)
        return
    if source.is_dir():
        folder = output or source / "evaluation"
        how = beams(num_beams, length_penalty, early_stopping)
        predictions, kind, labelled, details = _predict(source, data, overrides or [], folder, nproc, how)
        if not labelled and labels is None:
            out.print(f"{predictions}\n{data} has no labels: there is nothing to score", markup=False)
            return
    elif data is not None or task is None:
        wrong = "--task is missing" if task is None else f"{data} would be judged by a run"
        raise UserError(f"{source} is not a run's folder but predictions, and {wrong}")
    else:
        predictions, kind, folder, details = source, task.value, output or source.parent, {}
    found = read_predictions(predictions, kind, labels, named)
    differences = []
    if against is not None:
        differences = [asdict(row) for row in compare(read_predictions(against, kind, labels, named), found, seed)]
    scores = score(found, seed).as_json()
    show({**scores, "details": scores["details"] | details}, differences, folder, predictions.name.partition(".")[0])


def _score_text(model: Path, data: Path | None, sequence_length: int | None, folder: Path, seed: int) -> None:
    if data is None:
        raise UserError(
            f"{model} is a Hugging Face folder: give the dataset that it is to predict, "
            f"`bigtrain evaluate {model} DATASET`"
        )
    from bigtrain.evaluate.perplexity import score_text

    found = score_text(model, data, sequence_length=sequence_length, seed=seed)
    show(found.as_json(), [], folder, data.resolve().name)


def _predict(
    run: Path, data: Path | None, overrides: list[str], folder: Path, nproc: int | None, how: "Beams"
) -> tuple[Path, Any, bool, dict[str, Any]]:
    """Write a run's predictions; gives the file, the task, whether the examples say what is right, and how texts were
    made.

    In a process that is one of several it ends there.
    """
    from bigtrain.config import validate
    from bigtrain.finetune.saved import has_labels, load_run, open_examples
    from bigtrain.launch.environment import world_from_environment
    from bigtrain.launch.local import run_workers

    if data is None:
        raise UserError(
            f"{run} is a run's folder: give the examples that it is to judge, `bigtrain evaluate {run} FILE`"
        )
    config = load_run(run, overrides)
    predictions = folder / f"{data.name.partition('.')[0]}.predictions.jsonl"
    world = world_from_environment(nproc, os.environ, config.parallel.model_parallel_size)
    validate(config, world.world_size)
    writes = config.finetune.task == "sequence_to_sequence"
    if how.num_beams > 1 and not writes:
        raise UserError(f"--num-beams is for texts that are made, and {run} is of finetune.task={config.finetune.task}")
    if writes and config.model.num_experts and config.parallel.experts_lie_apart:
        raise ConfigError(f"{run} is a mixture of experts, which writes no texts where these lie on several processes")
    encoded = open_examples(config, data, run)
    if not world.is_worker:
        for note in encoded.notes:
            out.print(note, markup=False)
        folder.mkdir(parents=True, exist_ok=True)
    if world.is_worker or world.world_size == 1:
        from bigtrain.finetune.predict import predict_file

        predict_file(config, run, data, predictions, how)
        if world.is_worker:
            sys.exit(0)
    else:
        stopping = str(how.early_stopping).lower()
        words = ["evaluate", str(run), str(data), *overrides, "--output", str(folder), "--num-beams", how.num_beams]
        words += ["--length-penalty", how.length_penalty, "--early-stopping", stopping]
        code = run_workers([sys.executable, "-m", "bigtrain", *map(str, words)], world, log_dir=folder / "logs")
        if code:
            sys.exit(code)
    kind: Any = config.finetune.task
    made = {"generation": {**asdict(how), "max_target_length": config.finetune.max_target_length}} if writes else {}
    return predictions, kind, has_labels(encoded.examples, kind), made


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
    for note in scores["notes"]:
        out.print(note, markup=False)
    for name, signature in scores["details"].get("signatures", {}).items():
        out.print(f"{name}: {signature}", markup=False)
    page, file = folder / f"{stem}.html", folder / f"{stem}.scores.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({**scores, "differences": differences}, indent=2, allow_nan=False) + "\n", "utf-8")
        page.write_text(scores_page(scores, differences), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{error.filename} cannot be written: {error.strerror}") from None
    out.print(f"{file}\n{page}", markup=False)
