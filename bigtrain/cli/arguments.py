"""What commands share: the consoles, and the arguments that several have."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from bigtrain.evaluate.beams import Beams

out = Console(soft_wrap=True, highlight=False)
err = Console(stderr=True, soft_wrap=True, highlight=False)

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file; - for standard input.")]
Pattern = Annotated[str, typer.Option(help="File names to take from folders.")]
Exclude = Annotated[list[str] | None, typer.Option(help="Folder or file names to leave out.")]
Nproc = Annotated[int, typer.Option(help="Processes to share the work among, on this machine.", min=1)]
Certificate = Annotated[Path | None, typer.Option(help="Where to write what was found, as JSON.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[key=value ...]", help="Such as parallel.tensor=2.")]


class EarlyStopping(StrEnum):
    """When a beam search ends."""

    false = "false"
    true = "true"
    never = "never"


NumBeams = Annotated[
    int, typer.Option(help="Look for the likeliest text with so many beginnings at once (beam search).")
]
LengthPenalty = Annotated[
    float, typer.Option(help="Of a beam search: above 0 longer texts are favoured, below 0 shorter ones.")
]
Stopping = Annotated[
    EarlyStopping,
    typer.Option(
        "--early-stopping",
        help="Of a beam search: true ends it as soon as as many texts are finished; false when none that goes on would "
        "be better at its length; never when none could be at any.",
    ),
]


def beams(num_beams: int, length_penalty: float, early_stopping: EarlyStopping) -> "Beams":
    """A beam search as the user wishes it.

    Raises:
        UserError: An option is out of its range.
    """
    from bigtrain.evaluate.beams import Beams

    how = Beams(num_beams, length_penalty, "never" if early_stopping == "never" else early_stopping == "true")
    how.check()
    return how
