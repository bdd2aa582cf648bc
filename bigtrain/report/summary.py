"""A run's figures."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from bigtrain.models.size import parameter_count
from bigtrain.report.history import History, layout_text


@dataclass(frozen=True)
class Summary:
    """The figures of a run so far; None where the run has none."""

    name: str
    parameters: int
    step: int
    steps: int
    """Of the whole run."""
    tokens: int
    loss: float
    """Mean over the last rows, a twentieth of them: single batches vary."""
    best_validation_loss: float | None
    """Nats a token."""
    best_validation_step: int | None
    bits_per_byte: float | None
    """Of the held-out text, at the best validation."""
    tokens_per_second: float
    """Median over the rows."""
    model_flops_utilization: float | None
    """Median over the rows."""
    training_seconds: float
    """In steps, without validation and saving."""
    layouts: tuple[str, ...]
    """In which it ran, in order."""
    compressors: Mapping[str, float]
    """Bits a byte that each needs for the same held-out text."""

    def rows(self) -> list[tuple[str, str]]:
        """The figures as a table of names and values."""
        shown = [
            ("parameters", f"{self.parameters:,}"),
            ("steps", f"{self.step:,} of {self.steps:,}"),
            ("tokens", f"{self.tokens:,}"),
            ("training loss", f"{self.loss:.4f}"),
        ]
        if self.best_validation_loss is not None:
            shown.append(("validation loss", f"{self.best_validation_loss:.4f} (step {self.best_validation_step:,})"))
        if self.bits_per_byte is not None:
            shown.append(("bits per byte, held-out", f"{self.bits_per_byte:.3f}"))
        shown += [(f"  {name} on the same text", f"{bits:.3f}") for name, bits in self.compressors.items()]
        shown.append(("tokens per second", f"{self.tokens_per_second:,.0f}"))
        if self.model_flops_utilization is not None:
            shown.append(("model FLOPs utilisation", f"{self.model_flops_utilization:.1%}"))
        shown.append(("time in steps", _duration(self.training_seconds)))
        if self.layouts:
            shown.append(("layout", ", then ".join(self.layouts)))
        return shown


def summarize(history: History, compressors: Mapping[str, float]) -> Summary:
    """The figures of a run; `compressors` as `compression` gives them, or empty."""
    train, last = history.train, history.train[-1]
    best = min(history.validation, key=lambda row: row["validation_loss"], default={})
    used = [row["model_flops_utilization"] for row in train if row.get("model_flops_utilization") is not None]
    before = [0, *(row["step"] for row in train[:-1])]
    layouts = [layout_text(event) for event in history.events if event["event"] in ("start", "resume")]
    return Summary(
        name=history.name,
        parameters=parameter_count(history.config.model),
        step=last["step"],
        steps=history.config.training.steps,
        tokens=last["tokens"],
        loss=statistics.fmean(row["loss"] for row in train[-max(1, len(train) // 20) :]),
        best_validation_loss=best.get("validation_loss"),
        best_validation_step=best.get("step"),
        bits_per_byte=best.get("validation_bits_per_byte"),
        tokens_per_second=statistics.median(row["tokens_per_second"] for row in train),
        model_flops_utilization=statistics.median(used) if used else None,
        training_seconds=sum(
            row["step_seconds"] * (row["step"] - first) for row, first in zip(train, before, strict=True)
        ),
        layouts=tuple(layout for i, layout in enumerate(layouts) if i == 0 or layout != layouts[i - 1]),
        compressors=compressors,
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"
