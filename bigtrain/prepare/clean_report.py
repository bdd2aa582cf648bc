"""What a cleaning did: counts of every step and examples of what it dropped, as JSON and as a page."""

import hashlib
import json
import shutil
from collections import defaultdict
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from bigtrain.errors import BigTrainError

_STYLE = """
  body { font: 15px/1.5 system-ui, sans-serif; color: #1d2125; max-width: 64rem; margin: 2.5rem auto; padding: 0 1rem; }
  h1 { font-size: 1.5rem; margin: 0 0 1rem; }
  h2 { font-size: 1.05rem; margin: 2rem 0 .5rem; }
  table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
  td, th { padding: .35rem .6rem; border-bottom: 1px solid #e7e9ec; text-align: left; vertical-align: top; }
  th { font-weight: 500; color: #5a6169; }
  .number { text-align: right; white-space: nowrap; }
  .bar { background: #dfe3e8; border-radius: 3px; height: .55rem; min-width: 6rem; margin-top: .45rem; }
  .bar div { background: #4a7a5c; border-radius: 3px; height: 100%; }
  pre { background: #f6f7f8; padding: .6rem .8rem; border-radius: 6px; white-space: pre-wrap; overflow-wrap: anywhere;
        font-size: 13px; max-height: 14rem; overflow-y: auto; margin: .3rem 0 1rem; }
  summary { cursor: pointer; padding: .2rem 0; }
  .quiet { color: #5a6169; }
"""


@dataclass(frozen=True)
class Origin:
    """What a cleaning was begun with."""

    fingerprint: str
    datatrove: str
    """Its version."""
    recipe: dict[str, Any]
    inputs: list[list[str | int]]
    """Files with their sizes in bytes."""
    benchmarks: dict[str, dict[str, int]]
    """Of each benchmark the items, and how many are too short to be found."""


def finish(output: Path, logs: list[tuple[Path, list[str]]], origin: Origin, most: int, keep: bool) -> None:
    """Write the reports and, last, `cleaning.json`.

    Args:
        logs: For each stage datatrove's folder of logs, and for each part of its pipeline the step it counts for.
        most: Examples of each step and reason.
        keep: Do not remove what only the stages needed.
    """
    counts = step_counts(logs)
    examples = _examples(output / "tasks/examples", [row["step"] for row in counts], most)
    cleaning = {
        "fingerprint": origin.fingerprint,
        "recipe": origin.recipe,
        "datatrove": origin.datatrove,
        "counts": counts,
    }
    report = {**cleaning, "inputs": origin.inputs, "benchmarks": origin.benchmarks, "examples": examples}
    _write(output / "report.json", json.dumps(report, indent=1, ensure_ascii=False))
    _write(output / "report.html", _page(output, origin, counts, examples))
    if not keep:
        shutil.rmtree(output / "tasks/stages", ignore_errors=True)
    (output / "documents").mkdir(exist_ok=True)  # all documents may have been dropped
    _write(output / "cleaning.json", json.dumps(cleaning, indent=1, ensure_ascii=False))


def step_counts(logs: list[tuple[Path, list[str]]]) -> list[dict[str, Any]]:
    """For each step, in order: documents in, kept, dropped, dropped for each reason; changed; characters kept.

    Raises:
        BigTrainError: the figures do not add up, which would be a fault of ours.
    """
    totals: dict[str, dict[str, float]] = {}
    for folder, labels in logs:
        for label in labels:
            if label:
                totals.setdefault(label, defaultdict(float))
        for file in sorted((folder / "stats").glob("*.json")):
            for label, part in zip(labels, json.loads(file.read_text(encoding="utf-8")), strict=True):
                for name, value in part["stats"].items():
                    if label:
                        totals[label][name] += value["total"] if isinstance(value, dict) else value
    written = totals.pop("written")
    rows = [_row(label, figures) for label, figures in totals.items()]
    left = [*(row["in"] for row in rows[1:]), int(written.get("total", 0))]
    for row, after in zip(rows, left, strict=True):
        if row["kept"] != after or row["in"] != row["kept"] + row["dropped"]:
            raise BigTrainError(f"step {row['step']}: {row}, but {after} documents came out of it")
    return rows


def _row(label: str, figures: dict[str, float]) -> dict[str, Any]:
    is_read = label == "read"
    prefix = "rejected_" if is_read else "dropped_"
    reasons = {name.removeprefix(prefix): int(n) for name, n in figures.items() if name.startswith(prefix)}
    came = int(figures.get("records" if is_read else "total", 0))
    dropped = sum(reasons.values()) if is_read else int(figures.get("dropped", 0))
    # what drops nothing does not count what it forwards
    kept = int(figures.get("forwarded", 0)) if dropped and not is_read else came - dropped
    row: dict[str, Any] = {"step": label, "in": came, "kept": kept, "dropped": dropped}
    row["reasons"] = dict(sorted(reasons.items(), key=lambda reason: (-reason[1], reason[0])))
    if "changed" in figures:
        row["changed"] = int(figures["changed"])
    if figures.get("doc_len"):
        row["characters_kept"] = int(figures["doc_len"])
    return row


def _examples(folder: Path, steps: list[str], most: int) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """For each step and reason some of what it dropped, from all tasks, in an order that a hash gives."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for step in steps:
        reasons: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for file in sorted((folder / step).rglob("*.jsonl")):
            for line in file.read_text(encoding="utf-8").splitlines():
                example = json.loads(line)
                reasons[example.pop("reason")].append(example)
        if reasons:
            found[step] = {reason: sorted(some, key=_draw)[:most] for reason, some in sorted(reasons.items())}
    return found


def _draw(example: dict[str, Any]) -> bytes:
    return hashlib.sha256(str(example["id"]).encode()).digest()


def _write(path: Path, text: str) -> None:
    waiting = path.with_name(f".{path.name}")
    waiting.write_text(text, encoding="utf-8")
    waiting.replace(path)


def _page(output: Path, origin: Origin, counts: list[dict[str, Any]], examples: dict[str, Any]) -> str:
    first, last = counts[0]["in"], counts[-1]["kept"]
    short = [f"{name}: {of['too_short']} of {of['items']}" for name, of in origin.benchmarks.items() if of["too_short"]]
    warning = f"<p>Benchmark items too short to be found: {escape('; '.join(short))}.</p>" if short else ""
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Cleaning of {escape(output.name)}</title>
<style>{_STYLE}</style>
<h1>Cleaning of {escape(output.name)}</h1>
<p>{last:,} of {first:,} documents kept ({_share(last, first)}), from
{len(origin.inputs):,} file{"s" * (len(origin.inputs) != 1)}.
<span class="quiet">Recipe {origin.fingerprint}, datatrove {escape(origin.datatrove)}.</span></p>
{warning}
<h2>Steps</h2>
<table>
<tr><th>step<th class="number">in<th class="number">kept<th class="number">dropped<th>kept<th>why</tr>
{"".join(_table_row(row, first) for row in counts)}
</table>
<h2>Examples of what was dropped</h2>
{"".join(_chapter(step, reasons) for step, reasons in examples.items()) or "<p>Nothing was dropped.</p>"}
<h2>Recipe</h2>
<details><summary>every default spelled out</summary>
<pre>{escape(json.dumps(origin.recipe, indent=2, ensure_ascii=False))}</pre></details>
</html>
"""


def _table_row(row: dict[str, Any], first: int) -> str:
    told = [f"{reason} {number:,}" for reason, number in row["reasons"].items()]
    told += [f"changed {row['changed']:,}"] if "changed" in row else []
    bar = f'<div class="bar"><div style="width:{100 * row["kept"] / max(first, 1):.1f}%"></div></div>'
    numbers = "".join(f'<td class="number">{row[key]:,}' for key in ("in", "kept", "dropped"))
    return f"<tr><td>{escape(row['step'])}{numbers}<td>{bar}<td>{escape(', '.join(told))}</tr>\n"


def _chapter(step: str, reasons: dict[str, list[dict[str, Any]]]) -> str:
    parts = []
    for reason, some in reasons.items():
        shown = "".join(
            f'<div class="quiet">{escape(_where(example))}</div><pre>{escape(example["text"])}</pre>'
            for example in some
        )
        title = step if reason == step else f"{step}: {reason}"
        parts.append(f"<details><summary>{escape(title)} ({len(some)} shown)</summary>{shown}</details>\n")
    return "".join(parts)


def _where(example: dict[str, Any]) -> str:
    place = f"{example['source']} #{example['record']}"
    name = "" if example["id"] == f"{example['source']}#{example['record']}" else f", id {example['id']}"
    ngram = f", shares “{example['contaminated_ngram']}”" if "contaminated_ngram" in example else ""
    return place + name + ngram


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "none"
