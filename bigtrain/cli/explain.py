"""`bigtrain explain`: why a fine-tuned run answers as it does."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from bigtrain.cli.arguments import out
from bigtrain.config.tasks import OF_WHOLE_TEXTS
from bigtrain.errors import ConfigError, DataError, UserError

if TYPE_CHECKING:
    from bigtrain.config import Config
    from bigtrain.data.examples import Examples

_OVERRIDES = ("parallel.zero_stage=0", "parallel.offload=none", "training.precision=fp32")


def explain(
    run: Annotated[Path, typer.Argument(help="The folder of a run of fine-tuning.")],
    text: Annotated[str | None, typer.Argument(help="What the model is to judge.")] = None,
    pair: Annotated[str | None, typer.Option(help="The second text, of a run that judges two together.")] = None,
    file: Annotated[
        Path | None, typer.Option(help="A .txt file with the text, or a table of examples as `evaluate` reads it.")
    ] = None,
    label: Annotated[
        str | None, typer.Option(help="The class to explain; default: of each text the one that is predicted.")
    ] = None,
    nearest: Annotated[int, typer.Option(help="Training examples to find; 0: none.", min=0)] = 5,
    steps: Annotated[int, typer.Option(help="Points of the integral; more make its sum more exact.", min=2)] = 64,
    most: Annotated[int, typer.Option(help="Explain so many of a table's examples, the first ones.", min=1)] = 20,
    output: Annotated[Path | None, typer.Option(help="The page; default: RUN/evaluation/explanation.html.")] = None,
) -> None:
    """Show which words a classifier's answer rests on, and which training examples it takes for the most alike."""
    from bigtrain.finetune.saved import encoder_of, load_run
    from bigtrain.report.explanation import explanation_page

    config = load_run(run, _OVERRIDES)
    if config.finetune.task not in OF_WHOLE_TEXTS:
        raise ConfigError(
            f"{run} is of finetune.task={config.finetune.task}; what is explained is {' or '.join(OF_WHOLE_TEXTS)}"
        )
    labels = config.finetune.labels or []
    if label is not None and label not in labels:
        raise UserError(f"--label {label} is no class of {run}; it has {', '.join(labels) or 'none, but a number'}")
    examples = _examples(config, run, text, pair, file, most)
    page = output or run / "evaluation" / "explanation.html"
    if output is not None and not output.absolute().parent.is_dir():
        raise UserError(f"--output {output} cannot be written: {output.absolute().parent} is no folder")
    from bigtrain.finetune.explain import explain as explained

    encoded = encoder_of(config, run).encode(examples)
    for note in encoded.notes:
        out.print(note, markup=False)
    shown = []
    for explanation in explained(config, run, encoded, label=label, steps=steps, nearest=nearest):
        shown.append(explanation.as_json())
        _show(shown[-1])
    try:
        page.parent.mkdir(exist_ok=True)
        page.write_text(explanation_page(f"{run.resolve().name}, explained", shown, encoded.notes), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{error.filename} cannot be written: {error.strerror}") from None
    out.print(str(page), markup=False)


def _examples(
    config: "Config", run: Path, text: str | None, pair: str | None, file: Path | None, most: int
) -> "Examples":
    """What is to be explained, as examples whose labels may be missing."""
    from bigtrain.data.examples import Example, Examples, read_examples

    if (text is None) == (file is None):
        raise UserError("give one text to explain, `bigtrain explain RUN TEXT`, or a file with --file")
    assert config.finetune.task is not None, "it was looked at"
    if file is not None and file.suffix != ".txt":
        found = read_examples(file, config.finetune.task, config.finetune.columns, labelled=False)
        return Examples(file, found.examples[:most], found.skipped)
    where = "the text" if file is None else str(file)
    if file is not None:
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"--file {file} cannot be read as text ({error})") from None
    if config.finetune.columns.text_pair is not None and pair is None:
        raise UserError(f"{run} judges two texts together: give the second with --pair")
    if config.finetune.columns.text_pair is None and pair is not None:
        raise UserError(f"{run} judges one text alone: leave --pair out")
    for name, given in ((where, text), ("--pair", pair)):
        if given is not None and not given.strip():
            raise UserError(f"{name} is empty: there is nothing to explain")
    return Examples(Path(where), [Example(where, text or "", pair)])


def _show(explanation: Mapping[str, Any]) -> None:
    """On the terminal: the text coloured, the strongest words by name, the nearest training examples."""
    from bigtrain.report.explanation import (
        answer,
        completeness,
        excerpt,
        largest,
        parts,
        strongest_words,
        word_list,
    )

    out.print(Text(f"{explanation['id']}: {answer(explanation)}", style="bold"))
    most = largest(explanation)
    for text in explanation["texts"]:
        shown = Text()
        for part, strength in parts(text, most):
            shown.append(part, _style(strength))
        out.print(shown)
    speak_for, against = strongest_words(explanation)
    out.print(f"for it: {word_list(speak_for)}\nagainst it: {word_list(against)}", markup=False)
    out.print(completeness(explanation), markup=False)
    for one in explanation["nearest"]:
        line = f"{one['similarity']:.3f}  {one['label']}  {one['id']}  "
        out.print(f"{line}{excerpt(one, max(20, out.width - len(line)))}", markup=False)


def _style(strength: float | None) -> str:
    """How a piece is shown on a terminal of these colours."""
    from bigtrain.report.explanation import shade

    if strength is None:
        return "dim"
    if out.color_system in ("truecolor", "256"):
        return f"black on rgb({','.join(map(str, shade(strength)))})" if strength else ""
    color = "blue" if strength > 0 else "red"
    return "" if abs(strength) < 0.1 else color if abs(strength) < 0.5 else f"bold {color}"
