"""The loss curve as a picture."""

from collections.abc import Sequence
from io import BytesIO

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from bigtrain.report.history import History, layout_text
from bigtrain.report.summary import Summary

TRAIN, VALIDATION, QUIET = "#2f6fad", "#d9622b", "#7a7f87"


def curve_png(history: History, summary: Summary) -> bytes:
    """The training loss (thin) and its running mean, validation points, and the places where the run was resumed.

    Returns:
        A PNG file, 1440 pixels wide.
    """
    figure = Figure(figsize=(9, 4.6), dpi=160, layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    _draw_losses(axes, history)
    _mark_resumes(axes, history)
    _dress(axes, history, summary)
    file = BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def running_mean(values: Sequence[float], window: float) -> list[float]:
    """Exponential moving average over about `window` values, without the bias towards a zero before the first."""
    decay = 1 - 1 / max(1.0, window)
    total = weight = 0.0
    means = []
    for value in values:
        total, weight = decay * total + (1 - decay) * value, decay * weight + (1 - decay)
        means.append(total / weight)
    return means


def _draw_losses(axes: Axes, history: History) -> None:
    steps = [row["step"] for row in history.train]
    losses = [row["loss"] for row in history.train]
    axes.plot(steps, losses, color=TRAIN, linewidth=0.8, alpha=0.35)
    axes.plot(steps, running_mean(losses, len(losses) / 50), color=TRAIN, linewidth=1.8, label="training")
    if history.validation:
        points = [(row["step"], row["validation_loss"]) for row in history.validation]
        (line,) = axes.plot(*zip(*points, strict=True), "-o", color=VALIDATION, label="held-out", linewidth=1.0)
        line.set(markersize=5.5, markeredgecolor="white", zorder=5)
        axes.annotate(
            f"{points[-1][1]:.3f}",
            points[-1],
            xytext=(0, 9),
            textcoords="offset points",
            ha="center",
            color=VALIDATION,
            fontsize=9,
        )


def _mark_resumes(axes: Axes, history: History) -> None:
    for event in history.resumes:
        axes.axvline(event["step"], color=QUIET, linewidth=1.0, linestyle=(0, (4, 3)), zorder=1)
        axes.annotate(
            f"resumed: {layout_text(event)}",
            (event["step"], 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(4, -4),
            textcoords="offset points",
            rotation=90,
            va="top",
            color=QUIET,
            fontsize=8,
        )


def _dress(axes: Axes, history: History, summary: Summary) -> None:
    axes.set_title(summary.name, loc="left", fontsize=13, fontweight="bold")
    axes.set_title(
        f"{_short(summary.parameters)} parameters · {_short(summary.tokens)} tokens",
        loc="right",
        fontsize=9.5,
        color=QUIET,
    )
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per token)")
    axes.set_xlim(0, max(row["step"] for row in (*history.train, *history.validation)) * 1.02)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axes.grid(axis="y", color="#e7e9ec", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False, loc="upper right")


def _short(count: float) -> str:
    """Such as 5.2 M."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f}"
