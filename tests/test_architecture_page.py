"""docs/architecture.md keeps up with the code: each file in its room's rows, and no row for a file that is gone."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def rows() -> set[tuple[str, str]]:
    """(room, file) of the table of rooms."""
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    room, found = "", set()
    for line in page.partition("## What is where")[0].splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) == 3 and "`" in cells[0] + cells[1]:
            room = cells[0].strip("`/") or room
            found |= {(room, name) for name in re.findall("`([a-z0-9_]+)`", cells[1])}
    return found


def test_the_table_names_every_file_of_every_room() -> None:
    files = {(p.parent.name, p.stem) for p in (ROOT / "bigtrain").glob("*/*.py") if p.stem != "__init__"}
    assert rows() == files
