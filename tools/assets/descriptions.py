"""What is made of Debian's package index: its descriptions in two languages."""

import re
from pathlib import Path

from assets.examples import SIDES, for_test, write_lines
from assets.sources import package_index

HELD_OUT = 0.05


def translation(folder: Path, language: str) -> None:
    """Paragraphs in English and another language as JSON lines. A description lies on one side whole; a pair of which
    either text is also on the side of training is not held out."""
    with package_index(["en", language]) as index:
        ours = {row["Description-md5"]: row for row in index["en"]}
        theirs = {row["Description-md5"]: row for row in index[language]}
    pairs: dict[bool, dict[tuple[str, str], None]] = {False: {}, True: {}}
    for key in sorted(ours.keys() & theirs.keys()):
        source, target = (
            _paragraphs(rows[key][f"Description-{name}"]) for rows, name in ((ours, "en"), (theirs, language))
        )
        if len(source) == len(target):
            found = [pair for pair in zip(source, target, strict=True) if all(pair) and pair[0] != pair[1]]
            pairs[for_test(key, HELD_OUT)].update(dict.fromkeys(found))
    learned = {text for pair in pairs[False] for text in pair}
    for name, held_out in SIDES:
        rows = [pair for pair in pairs[held_out] if not (held_out and learned.intersection(pair))]
        write_lines(folder / f"{name}.jsonl", ({"source": source, "target": target} for source, target in rows))


def _paragraphs(description: str) -> list[str]:
    """The first line and the paragraphs; empty, what is set as lines of its own or left untranslated in part."""
    first, *lines = description.split("\n")
    parts = [first, *re.split(r"\n \.\n", "\n".join(lines))]
    return ["" if re.search(r"^  |<trans>", part, re.MULTILINE) else " ".join(part.split()) for part in parts]
