"""What verification found, as tables for the terminal."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from bigtrain.verify.chain import Arrow
from bigtrain.verify.compare import Row
from bigtrain.verify.masks import MaskRow


def row_table(rows: Sequence[Row], failed: Sequence[str] = ()) -> Table:
    """Each layout's loss and norm in the first step; how far that and any step lies from one process; the verdict."""
    table = Table("layout", "loss", "gradient norm", "first step", "any step", "", box=None)
    for row in rows:
        table.add_row(
            row.name,
            f"{row.loss:.6f}",
            f"{row.grad_norm:.6f}",
            f"{row.first_difference:.1e}",
            f"{row.largest_difference:.1e}",
            _verdict(row),
        )
    for name in failed:
        table.add_row(name, "", "", "", "", Text("failed", style="bold red"))
    return table


def arrow_table(arrows: Sequence[Arrow]) -> Table:
    """Each change of layout: what was saved, and whether what was loaded is the same to the last bit."""
    table = Table("step", "saved by", "loaded by", "weights", "moments", "", box=None)
    for arrow in arrows:
        verdict = Text("bit-equal", style="green") if arrow.bit_equal else Text("differs", style="bold red")
        digests = arrow.saved.weights[:12], arrow.saved.moments[:12]
        table.add_row(str(arrow.step), arrow.left, arrow.arrived, *digests, verdict)
    return table


def mask_table(rows: Sequence[MaskRow], failed: Sequence[str]) -> Table:
    """What moved in each layout when tokens were changed: what must not, and in brackets what may."""
    table = Table("layout", "", "earlier (later) tokens", "other (own) documents", "", box=None)
    for row in rows:
        m = row.moves
        documents = "" if m.others is None else f"{m.others:.1e} ({m.own:.1e})"
        verdict = Text("tight", style="green") if row.tight else Text("leaks", style="bold red")
        table.add_row(*row.name.split(", "), f"{m.earlier:.1e} ({m.later:.1e})", documents, verdict)
    for name in failed:
        table.add_row(*name.split(", "), "", "", Text("failed", style="bold red"))
    return table


def _verdict(row: Row) -> Text:
    if row.agrees:
        return Text("agrees", style="green")
    return Text("differs" if row.same_samples else "read other samples", style="bold red")
