"""What the models can do on real data, worked out by BigTrain's own commands, and written into docs/results.md.

    python benchmarks/results.py reviews-minilm reviews ... [--output runs/results] [--threads 2]
    python benchmarks/results.py --page          only the page, of what was worked out before

Each proof has a folder in OUTPUT; a command that was done there is not done again. What is held out serves for the last
figure alone: whatever was chosen was chosen on the training part, by `finetune.validation_fraction` or beforehand.
"""

import argparse
import json
import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from proofs import dialogue, questions, reviews, tags, translation
from proofs.bench import ROOT, Bench

PROOFS: dict[str, Callable[[Bench], None]] = {
    "reviews-minilm": reviews.minilm,
    "reviews": reviews.small,
    "translation": translation.translation,
    "entities": tags.entities,
    "speech": tags.speech,
    "questions": questions.questions,
    "dialogue": dialogue.dialogue,
}
PAGE = ROOT / "docs" / "results.md"
VERSIONS = ("torch", "megatron-core", "deepspeed", "transformers", "scikit-learn", "sacrebleu", "seqeval")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("proofs", nargs="*", metavar="PROOF", help=", ".join(PROOFS))
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "results")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--page", action="store_true", help="write the page of what was worked out before")
    options = parser.parse_args()
    output = options.output.resolve()
    for name in options.proofs:
        PROOFS[name](Bench(output / name, options.threads))
    write_page(output)


def write_page(output: Path) -> None:
    """Replace what stands between the marks of each proof that was worked out."""
    page = PAGE.read_text(encoding="utf-8")
    for name in PROOFS:
        file = output / name / "table.json"
        if file.is_file():
            begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
            if begin not in page:
                raise SystemExit(f"{PAGE} has no place for {name}: {begin} and {end}")
            before, _, rest = page.partition(begin)
            page = before + begin + "\n\n" + table(json.loads(file.read_text())) + "\n" + end + rest.partition(end)[2]
    PAGE.write_text(page, encoding="utf-8")


def table(made: dict[str, Any]) -> str:
    """Markdown of a proof's table, its notes and its commands."""
    heads = ["", *made["columns"], "what it read", "seconds", "CPU seconds"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    loads = []
    for row in made["rows"]:
        took = row["took"]
        loads += took["load"]
        times = [f"{took[key]:,.0f}" if took["load"] else "–" for key in ("seconds", "cpu_seconds")]
        figures = [row["figures"].get(column, "–") for column in made["columns"]]
        lines.append(f"| {' | '.join([row['name'], *figures, row['about'], *times])} |")
    load = f"load average of the machine {min(loads):.1f} to {max(loads):.1f}, " if loads else ""
    packages = ", ".join(f"{name} {version(name)}" for name in VERSIONS)
    threads = f"{made['threads']} thread{'s' if made['threads'] > 1 else ''}"
    where = f"{made['date']}, {threads} on a machine with {os.cpu_count()} CPU cores, {load}{packages}."
    folded = ["<details><summary>Commands</summary>", "", "```", *made["commands"], "```", "", "</details>", ""]
    return "\n".join([*lines, "", *made["notes"], where, "", *folded])


if __name__ == "__main__":
    main()
