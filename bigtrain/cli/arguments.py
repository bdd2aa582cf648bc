"""What commands share: the consoles, and the arguments that several have."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

out = Console(soft_wrap=True, highlight=False)
err = Console(stderr=True, soft_wrap=True, highlight=False)

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file; - for standard input.")]
Pattern = Annotated[str, typer.Option(help="File names to take from folders.")]
Exclude = Annotated[list[str] | None, typer.Option(help="Folder or file names to leave out.")]
Nproc = Annotated[int, typer.Option(help="Processes to share the work among, on this machine.", min=1)]
Certificate = Annotated[Path | None, typer.Option(help="Where to write what was found, as JSON.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[key=value ...]", help="Such as parallel.tensor=2.")]
