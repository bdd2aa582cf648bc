"""What a run leaves to read: `metrics.jsonl`, `events.jsonl`, a log a rank."""

import errno
import json
import logging
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from bigtrain.errors import StorageError

METRICS = "metrics.jsonl"
EVENTS = "events.jsonl"
LOG = "BIGTRAIN_LOG"
"""Environment variable with which a launcher says where a process is to write its log."""
_FULL = {errno.ENOSPC, errno.EDQUOT}


def append(path: Path, row: dict[str, Any]) -> None:
    """Add one JSON object as a line, whole and at once; a line that a crash cut short makes way for it.

    JSON has no NaN and no infinity: they become null.

    Raises:
        StorageError: The disk is full.
    """
    row = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    try:
        with path.open("ab+") as file:
            _drop_cut_line(file)
            file.write(json.dumps(row, allow_nan=False).encode() + b"\n")
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise StorageError(
            f"{path} cannot be written: {error.strerror}. Checkpoints are as they were: make room, and start again"
        ) from error


def _drop_cut_line(file: BinaryIO) -> None:
    end = file.seek(0, os.SEEK_END)
    if end == 0:
        return
    file.seek(end - 1)
    if file.read(1) != b"\n":
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a JSON-lines file; a last line cut short by a crash is left out."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for line in file:
            if not line.endswith("\n"):
                return
            yield json.loads(line)


def slurm_job_id(env: Mapping[str, str]) -> str | None:
    """The Slurm job of this process, as Slurm names it: `17`, of an array's task `17_3`; None: there is none.

    Of a task `SLURM_JOB_ID` is another number, and that of one task stands for the whole array.
    """
    if "SLURM_ARRAY_JOB_ID" in env:
        return f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"
    return env.get("SLURM_JOB_ID")


def event(output_dir: Path, name: str, step: int, world_size: int, **details: Any) -> None:
    """Record that something happened to the run."""
    row = {"event": name, "time": round(time.time(), 3), "step": step, "world_size": world_size, **details}
    append(output_dir / EVENTS, row)


def forget_after(path: Path, step: int) -> int:
    """Drop rows of steps beyond `step`, which a resumed run will do again; returns how many."""
    rows = list(read_rows(path))
    kept = [row for row in rows if row["step"] <= step]
    if len(kept) < len(rows):
        aside = path.with_suffix(".writing")
        aside.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        aside.replace(path)
    return len(rows) - len(kept)


def log_path(output_dir: Path, rank: int) -> Path:
    """Where a rank's log lies in the run's folder."""
    return output_dir / "logs" / f"rank-{rank:05d}.log"


def own_log(output_dir: Path, rank: int) -> Path:
    """Where this process writes its log: to `log_path`, unless its launcher keeps it until it is known how the run
    ends."""
    return Path(os.environ.get(LOG, log_path(output_dir, rank)))


def log_to_file(output_dir: Path, rank: int) -> logging.Logger:
    """Send this rank's log to `own_log`; rank 0 keeps its terminal, others write all output there."""
    path = own_log(output_dir, rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    if rank > 0:
        sys.stdout.flush()
        sys.stderr.flush()
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.close(descriptor)
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("bigtrain")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
    return logger
