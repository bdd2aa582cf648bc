"""One line on rank 0's terminal: step, loss, tokens a second, time left."""

import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 10.0


class ProgressLine:
    """A live line on a terminal; elsewhere (a batch job's output file) a plain line every few seconds."""

    def __init__(self, steps: int, done: int, *, shown: bool) -> None:
        self._console = Console(file=sys.stdout, soft_wrap=True)
        self._shown = shown
        self._steps = steps
        self._last_line = 0.0
        self._live: Progress | None = None
        if shown and self._console.is_terminal:
            columns = (BarColumn(24), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
            self._live = Progress(*columns, console=self._console)
            self._task = self._live.add_task("", total=steps, completed=done)
            self._live.start()

    def update(self, row: dict[str, Any]) -> None:
        """Show a row of metrics."""
        text = f"loss {row['loss']:.4f}  {row['tokens_per_second']:,.0f} tokens/s"
        if self._live is not None:
            self._live.update(self._task, completed=row["step"], description=text)
        elif self._shown and (time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES or row["step"] == self._steps):
            self._last_line = time.monotonic()
            seconds = (self._steps - row["step"]) * row["step_seconds"]
            self.say(f"step {row['step']}/{self._steps}  {text}  {_clock(seconds)} left")

    def say(self, text: str) -> None:
        """Print a line above the live one."""
        if self._shown:
            self._console.print(text, highlight=False, markup=False)

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
