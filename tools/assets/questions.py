"""Questions by template on real entries of Debian's package index, in SQuAD's form."""

import json
import random
from pathlib import Path
from typing import Any

from assets.examples import SIDES, for_test
from assets.sources import package_index

TOGETHER = (1, 2, 3)
"""Packages of a context, drawn; a question is on one of them."""
QUESTIONS = 4
"""Of a context at most; one of them has no answer there."""
CONTEXTS = {"train": 4000, "test": 500}

FIELDS: dict[str, tuple[str, list[str], list[str]]] = {
    # what it is called here: the index' field; how a context says it; how it is asked for
    "version": (
        "Version",
        ["The current version is {}.", "It is at version {}.", "Debian carries release {} of it."],
        ["Which version of {} is there?", "What release of {} can be installed?", "How recent is {}?"],
    ),
    "maintainer": (
        "Maintainer",
        ["It is maintained by {}.", "{} looks after it.", "The work is done by {}."],
        ["Who maintains {}?", "Who takes care of {}?", "Whom does one ask about {}?"],
    ),
    "section": (
        "Section",
        ["It belongs to the section {}.", "One finds it under {}.", "The archive files it as {}."],
        ["To which section does {} belong?", "Where in the archive is {} filed?", "What kind of package is {}?"],
    ),
    "size": (
        "Installed-Size",
        ["It takes {} kilobytes on disk.", "Once installed it needs {} kB.", "Its files fill {} kB."],
        ["How large is {}?", "How much room does {} need?", "How many kilobytes does {} take?"],
    ),
    "homepage": (
        "Homepage",
        ["Its home is {}.", "More is told at {}.", "The project lives at {}."],
        ["Where is the website of {}?", "At which address does one read about {}?", "Where does {} live on the web?"],
    ),
    "purpose": (
        "Description",
        ["It is described as: {}.", "In short: {}.", "What it is: {}."],
        ["What is {}?", "How is {} described?", "What does {} do?"],
    ),
}

Record = dict[str, str]


def qa(folder: Path) -> None:
    """Each context tells of some packages in sentences whose order and words are drawn; a package lies on one side."""
    with package_index(["en"]) as index:
        records = {row["Package"]: _record(row) for row in index["packages"] if "Description" in row}
    for name, held_out in SIDES:
        chosen = [key for key in sorted(records) if for_test(key) == held_out]
        draw = random.Random(name)
        paragraphs = [_paragraph(draw, chosen, records, f"{name}-{number}") for number in range(CONTEXTS[name])]
        document = {"version": "v2.0", "data": [{"title": "packages", "paragraphs": paragraphs}]}
        (folder / f"{name}.json").write_text(json.dumps(document), encoding="utf-8")


def _record(row: dict[str, str]) -> Record:
    found = {key: row[field].partition("\n")[0] for key, (field, _, _) in FIELDS.items() if row.get(field)}
    if "maintainer" in found:
        found["maintainer"] = found["maintainer"].partition(" <")[0].strip('"')
    return found


def _paragraph(draw: random.Random, names: list[str], records: dict[str, Record], number: str) -> dict[str, Any]:
    here = draw.sample(names, draw.choice(TOGETHER))
    context, places = "", {}
    for name in here:
        context += f"{' ' if context else ''}{name} is a package of Debian."
        for key in draw.sample(sorted(records[name]), len(records[name])):
            if draw.random() < 0.75:
                before, after = draw.choice(FIELDS[key][1]).split("{}")
                places[name, key] = len(context) + 1 + len(before)
                context += f" {before}{records[name][key]}{after}"
    asked = [(name, key) for name in here for key in FIELDS]
    known = [pair for pair in asked if pair in places]
    unknown = [pair for pair in asked if pair not in places]
    pairs = draw.sample(known, min(QUESTIONS - 1, len(known))) + draw.sample(unknown, min(1, len(unknown)))
    return {
        "context": context,
        "qas": [
            {
                "id": f"{number}-{place}",
                "question": draw.choice(FIELDS[key][2]).format(name),
                "is_impossible": (name, key) not in places,
                "answers": [{"text": records[name][key], "answer_start": places[name, key]}]
                if (name, key) in places
                else [],
            }
            for place, (name, key) in enumerate(pairs)
        ],
    }
