"""`bigtrain verify-…`: what a user runs before a cluster is paid for."""

import sys
from enum import StrEnum
from typing import Annotated

import typer

from bigtrain.cli.arguments import Certificate, ConfigFile, Nproc, Overrides, out


class Precision(StrEnum):
    """Types of weights and activations."""

    fp32 = "fp32"
    bf16 = "bf16"


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
    pinned = _pinned(overrides)
    if resume:
        chain = layouts_agree.verify_resume(loaded, nproc, pinned, steps, precision.value)
        out.print(arrow_table(chain.arrows), row_table(chain.rows))
        found, agrees = chain.to_json(), chain.holds
    else:
        verdict = layouts_agree.verify_layouts(loaded, nproc, pinned, steps, precision.value)
        out.print(
            row_table(verdict.rows, verdict.failed), f"one process that sums in other orders: {verdict.control:.1e}"
        )
        found, agrees = verdict.to_json(), verdict.all_agree
    if certificate:
        certificate.write_text(found)
    out.print("all agree" if agrees else "[bold red]not all agree[/]")
    sys.exit(0 if agrees else 1)


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
