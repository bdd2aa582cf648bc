"""The report of a run."""

from dataclasses import dataclass
from pathlib import Path

from bigtrain.data.manifest import read_manifest
from bigtrain.errors import UserError
from bigtrain.report.compression import compression
from bigtrain.report.curve import curve_png
from bigtrain.report.history import History, read_history
from bigtrain.report.page import report_page
from bigtrain.report.summary import Summary, summarize
from bigtrain.report.terminal import terminal_curve

CURVE = "loss.png"
PAGE = "report.html"
COMPRESSED_AT_MOST = 32_000_000
"""Bytes of held-out text up to which the compressors are tried: some 15 seconds for this much."""


@dataclass(frozen=True)
class Report:
    """What was found and written."""

    summary: Summary
    curve: str
    """The loss curve in characters."""
    png: Path
    page: Path


def report(run: Path, *, width: int = 72) -> Report:
    """Read a run's records and write `loss.png` and `report.html` into its folder; the run may still be going.

    Args:
        run: The run's folder.
        width: Columns of the curve in characters.

    Raises:
        UserError: It is not a run's folder, has no step yet, has a damaged line, or cannot be written to.
        DataError: The validation data is there but damaged.
    """
    history = read_history(run)
    summary = summarize(history, _compressors(history))
    picture = curve_png(history, summary)
    png, page = run / CURVE, run / PAGE
    try:
        png.write_bytes(picture)
        page.write_text(report_page(history, summary, picture), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{error.filename} cannot be written: {error.strerror}") from None
    curve = terminal_curve(
        [(row["step"], row["loss"]) for row in history.train],
        [(row["step"], row["validation_loss"]) for row in history.validation],
        width=width,
        marks=[row["step"] for row in history.resumes],
    )
    return Report(summary, curve, png, page)


def _compressors(history: History) -> dict[str, float]:
    """The yardstick, where the run was validated on text that is still there and not too long, in bits per byte."""
    path = Path(history.config.data.validation or "")
    in_bits = any("validation_bits_per_byte" in row for row in history.validation)
    if not in_bits or not (path / "dataset.json").is_file():
        return {}
    return compression(path) if 0 < read_manifest(path).bytes <= COMPRESSED_AT_MOST else {}
