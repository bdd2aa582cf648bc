"""A run's records, read."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigtrain.config import Config, load_config
from bigtrain.errors import UserError
from bigtrain.training.records import EVENTS, METRICS, read_rows

AXES = ("tensor", "context", "pipeline", "virtual_pipeline", "expert", "data")


@dataclass(frozen=True)
class History:
    """What a run has written so far; rows are those of `metrics.jsonl` and `events.jsonl`."""

    name: str
    config: Config
    train: list[dict[str, Any]]
    """One a logged step whose loss was finite, in order, never empty."""
    validation: list[dict[str, Any]]
    events: list[dict[str, Any]]

    @property
    def resumes(self) -> list[dict[str, Any]]:
        """The events at which the run was continued."""
        return [row for row in self.events if row["event"] == "resume"]


def read_history(run: Path) -> History:
    """Read a run's folder; it may still be running.

    Raises:
        UserError: It is not a run's folder, has no step yet, or holds a line that cannot be understood.
    """
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run} is not a run's folder: it has no config.yaml")
    config = load_config(run / "config.yaml")
    metrics = list(_rows(run / METRICS, ("step",)))
    train = sorted((row for row in metrics if row.get("loss") is not None), key=lambda row: row["step"])
    if not train:
        raise UserError(f"{run / METRICS}: no step yet")
    validation = sorted((row for row in metrics if row.get("validation_loss") is not None), key=lambda row: row["step"])
    name = config.logging.run_name or run.resolve().name
    return History(name, config, train, validation, list(_rows(run / EVENTS, ("step", "event"))))


def layout_text(event: Mapping[str, Any]) -> str:
    """The layout of a start or resume in words: `tensor 2 · data 2 · ZeRO-1`."""
    layout = event.get("layout", {})
    parts = [f"{axis.replace('_', ' ')} {layout[axis]}" for axis in AXES if layout.get(axis, 1) > 1]
    return " · ".join([*parts, f"ZeRO-{layout['zero_stage']}"] if parts else ["one process"])


def _rows(path: Path, keys: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    rows = read_rows(path)
    for number in itertools.count(1):
        try:
            row = next(rows)
        except StopIteration:
            return
        except ValueError as error:
            raise UserError(f"{path}, line {number}: not JSON ({error})") from None
        if not isinstance(row, dict) or not all(key in row for key in keys):
            raise UserError(f"{path}, line {number}: not an object with {' and '.join(keys)}")
        yield row
