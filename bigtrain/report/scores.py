"""A model's scores as one HTML file: the figures with their intervals, and what they hide."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bigtrain.report.curve import QUIET, TRAIN, VALIDATION
from bigtrain.report.page import STYLE, table

MOST_CLASSES = 30
"""A confusion matrix of more classes cannot be read."""


def scores_page(scores: Mapping[str, Any], differences: Sequence[Mapping[str, Any]] = ()) -> str:
    """The HTML.

    Args:
        scores: As `Scores.as_json` gives them.
        differences: From another model, if there is one: rows with metric, difference, p_value, test.
    """
    title = escape(f"{scores['name']}: {scores['task'].replace('_', ' ')}")
    pictures = "\n".join(
        f'<h2>{escape(name)}</h2>\n<img style="max-width: 36rem" alt="{escape(name)}" '
        f'src="data:image/png;base64,{b64encode(picture).decode("ascii")}">'
        for name, picture in score_pictures(scores).items()
    )
    made = scores["details"].get("generation", {})
    notes = "".join(f"<p>{escape(note)}</p>" for note in scores["notes"])
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{STYLE}</style>
<h1>{title}</h1>
<h2>Figures ({scores["examples"]:,} examples)</h2>
{table(figures(scores))}
{notes}
{_chapter("Difference from the other model", difference_rows(differences))}
{pictures}
{_chapter("Classes", class_rows(scores))}
{_chapter("Signatures", list(scores["details"].get("signatures", {}).items()))}
{_chapter("How texts were made", [(k.replace("_", " "), str(v)) for k, v in made.items()])}
</html>
"""


def figures(scores: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name and value of each figure, with its interval."""
    return [(name.replace("_", " "), _figure(score)) for name, score in scores["scores"].items()]


def class_rows(scores: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Precision, recall, F1 and examples of each class, as text."""
    return [
        (
            name,
            f"precision {_plain(row['precision'])}, recall {_plain(row['recall'])}, F1 {_plain(row['f1'])}, "
            f"{row['examples']:,} examples",
        )
        for name, row in scores["details"].get("per_class", {}).items()
    ]


def difference_rows(differences: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Each difference with its p-value, as text."""
    return [
        (row["metric"].replace("_", " "), f"{row['difference']:+.4g}, p = {row['p_value']:.3g} ({row['test']})")
        for row in differences
    ]


def score_pictures(scores: Mapping[str, Any]) -> dict[str, bytes]:
    """PNG files by title: of classes their confusion, of probabilities their reliability, of numbers the points."""
    details, found = scores["details"], {}
    if "confusion_matrix" in details and len(details["classes"]) <= MOST_CLASSES:
        found["Confusion matrix"] = _picture(
            lambda axes: _draw_confusion(axes, details["confusion_matrix"], details["classes"])
        )
    if "calibration" in details:
        found["Reliability"] = _picture(lambda axes: _draw_reliability(axes, details["calibration"]))
    if "points" in details:
        found["Predicted over true"] = _picture(lambda axes: _draw_points(axes, details["points"]))
    return found


def _chapter(title: str, rows: list[tuple[str, str]]) -> str:
    return f"<h2>{escape(title)}</h2>\n{table(rows)}" if rows else ""


def _figure(score: Mapping[str, Any]) -> str:
    if score["value"] is None:
        return "not defined"
    interval = "" if score["low"] is None else f"   [{score['low']:.4g}, {score['high']:.4g}]"
    return f"{score['value']:.4g}{interval}"


def _plain(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.3f}"


def _picture(draw: Any) -> bytes:
    figure = Figure(figsize=(5.2, 4.6), dpi=130, layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    draw(axes)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    file = BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _draw_confusion(axes: Axes, counts: Sequence[Sequence[int]], classes: Sequence[str]) -> None:
    matrix = np.asarray(counts)
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(classes)), classes, rotation=45 if len(classes) > 3 else 0, ha="center")
    axes.set_yticks(range(len(classes)), classes)
    axes.set(xlabel="predicted", ylabel="true")
    for (row, column), count in np.ndenumerate(matrix) if len(classes) <= 12 else ():
        color = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, f"{count:,}", ha="center", va="center", color=color, fontsize=9)


def _draw_reliability(axes: Axes, bins: Sequence[Mapping[str, float]]) -> None:
    axes.plot([0, 1], [0, 1], color=QUIET, linewidth=1, linestyle=(0, (4, 3)), label="as sure as right")
    most = max(bin["examples"] for bin in bins)
    axes.bar(
        [bin["low"] for bin in bins],
        [bin["accuracy"] for bin in bins],
        width=[bin["high"] - bin["low"] for bin in bins],
        align="edge",
        color=[(*_rgb(TRAIN), 0.25 + 0.75 * bin["examples"] / most) for bin in bins],
        edgecolor="white",
        label="accuracy (darker: more examples)",
    )
    axes.plot([b["confidence"] for b in bins], [b["accuracy"] for b in bins], "o", color=VALIDATION, markersize=4)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="probability of the likeliest class", ylabel="how often it was right")
    axes.legend(frameon=False, loc="upper left", fontsize=8)


def _draw_points(axes: Axes, points: Sequence[Sequence[float]]) -> None:
    truth, predicted = np.asarray(points).T
    ends = [min(truth.min(), predicted.min()), max(truth.max(), predicted.max())]
    axes.plot(ends, ends, color=QUIET, linewidth=1, linestyle=(0, (4, 3)))
    axes.plot(truth, predicted, "o", color=TRAIN, alpha=0.4, markersize=4, markeredgewidth=0)
    axes.set(xlabel="true", ylabel="predicted")


def _rgb(color: str) -> tuple[float, ...]:
    return tuple(int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
