"""Checkpoints written beside training, one at a time.

A save has three parts. The copy to host memory stalls training. The write is done by a thread of each process,
which talks to no other: all collectives stay in the main thread, in the same order everywhere. When all ranks have
agreed, at the end of a step, that every file is on the disk, a thread of rank 0 completes the checkpoint.

    save() -> copy -> [thread, every rank: write file] -> poll(): all done? -> [thread, rank 0: publish] -> poll(): done
"""

import errno
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan

from bigtrain.checkpoint import catalog
from bigtrain.checkpoint.catalog import FORMAT_VERSION, TrainingState
from bigtrain.checkpoint.files import file_name, write_boxes, write_metadata
from bigtrain.checkpoint.holdings import adam_step, holdings
from bigtrain.checkpoint.places import is_local
from bigtrain.checkpoint.planners import Holding, SavePlanner, state_dict
from bigtrain.checkpoint.staging import Staging
from bigtrain.errors import StorageError
from bigtrain.parallel import topology
from bigtrain.parallel.engine import Engine

_DONE, _BUSY, _FAILED = range(3)  # the greatest decides
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
"""What the user has to mend. Everything else is a fault and shows its traceback."""


@dataclass(frozen=True)
class Saved:
    """A complete checkpoint."""

    path: Path
    step: int
    stalled_seconds: float
    """For which training stood still: the copy to host memory, or, not in the background, everything."""
    waited_seconds: float
    """For the write of the checkpoint before, on top of that."""
    written_seconds: float
    """From the copy's end until it was seen to be complete, at the end of a step."""


@dataclass
class _Write:
    """What is in flight."""

    aside: Path
    final: Path
    marker: dict[str, Any]
    bytes: int
    began: float
    stalled: float
    waited: float
    task: "Future[Any]" = field(default_factory=Future)
    published: bool = False
    """Whether `task` is the second part."""


class Saver:
    """Saves one engine; every rank has one, and calls the same methods after the same steps."""

    def __init__(
        self,
        folder: Path,
        engine: Engine,
        data: Mapping[str, Any],
        *,
        keep_last: int,
        keep_every: int = 0,
        in_background: bool = True,
        origin: Mapping[str, Any] | None = None,
        completed: Callable[[Saved], None] = lambda _: None,
    ) -> None:
        """Removes what a crash has left half-written.

        Args:
            folder: Where checkpoints lie.
            engine: Model and optimizer.
            data: What decides the order of samples; compared on resume.
            keep_last: Older checkpoints are removed until this many remain; 0 keeps all.
            keep_every: Those at multiples of so many steps are kept for ever besides; 0: none.
            in_background: Copy and go on; else `save` returns when the checkpoint is complete, and copies only
                what lies on a GPU.
            origin: Where the run's first weights came from, if not from chance.
            completed: Called on every rank, in `save`, `poll` or `finish`, when a checkpoint is complete.
        """
        self._folder, self._engine, self._data, self.origin = folder, engine, dict(data), dict(origin or {})
        self._keep_last, self._keep_every = keep_last, keep_every
        self._in_background, self._completed = in_background, completed
        self._planner: SavePlanner | None = None
        self._plans: list[SavePlan] | None = None
        self._metadata: Metadata | None = None
        self._staging: Staging | None = None
        self._write: _Write | None = None
        self._abandoned = threading.Event()
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        with topology.together():
            if engine.layout.rank == 0:
                catalog.clean(folder)

    def save(self, state: TrainingState) -> Path:
        """Begin to save; waits first for the save before, if that is still being written.

        Returns:
            Where the checkpoint will be.

        Raises:
            StorageError: The disk is full; for the save before, or for this one if not in the background.
        """
        began = time.monotonic()
        self.finish()
        waited = time.monotonic() - began
        held = holdings(self._engine, to_save=True)
        if self._planner is None:
            self._plan(held)
        assert self._planner is not None
        aside, final = catalog.folders(self._folder, state.step)
        with topology.together():
            if self._engine.layout.rank == 0:
                catalog.make_room(aside)
            self._planner.state_dict = self._copy(held)
        write = _Write(
            aside=aside,
            final=final,
            marker=self._marker(state),
            bytes=sum(h.values.nbytes for h in held),
            began=time.monotonic(),
            stalled=time.monotonic() - began - waited,
            waited=waited,
        )
        write.task = self._thread.submit(self._write_file, write)
        self._write = write
        if not self._in_background:
            self.finish()
        return final

    def poll(self) -> None:
        """At the end of a step: complete what all ranks have written.

        Raises:
            StorageError: On all ranks, where one has met a full disk.
            Exception: On all ranks, what else one has met.
        """
        if self._write is not None:
            self._proceed(self._write)

    def finish(self) -> None:
        """Wait until what is being written is complete.

        Raises:
            Exception: As `poll`.
        """
        while self._write is not None:
            wait([self._write.task])
            self._proceed(self._write)

    def close(self) -> None:
        """Let go of the thread; a write that `finish` was not called for is given up at its next piece."""
        self._abandoned.set()
        self._thread.shutdown()

    def _plan(self, held: list[Holding]) -> None:
        """Who writes what: the same for every save of a run, so that ranks talk about it once."""
        planner = SavePlanner(held)
        planner.set_up_planner(state_dict(held), is_coordinator=self._engine.layout.rank == 0)
        self._plans = topology.gather(planner.create_local_plan())
        with topology.together():
            if self._plans is not None:
                _, self._metadata = planner.create_global_plan(self._plans)
        self._planner = planner

    def _copy(self, held: list[Holding]) -> dict[str, Tensor]:
        if not self._in_background and not any(holding.values.is_cuda for holding in held):
            return state_dict(held)
        if self._staging is None:
            self._staging = Staging(held)
        return self._staging.copy(held)

    def _marker(self, state: TrainingState) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            **asdict(state),
            "adam_step": adam_step(self._engine),
            "model": self._engine.config.model.model_dump(mode="json"),
            "layout": self._engine.layout.describe(),
            "data": self._data,
            "origin": self.origin,
            "trained": self._engine.config.finetune.trained,
        }

    def _write_file(self, write: _Write) -> Any:
        """In the thread of every rank."""
        assert self._planner is not None
        rank = self._engine.layout.rank
        try:
            return write_boxes(write.aside, rank, self._planner.plan, self._planner, self._abandoned)
        except OSError as error:
            raise _told(error, write.aside / file_name(rank), write) from error

    def _publish(self, write: _Write, written: list[Any]) -> None:
        """In the thread of rank 0, when all files are on the disk."""
        assert self._metadata is not None
        assert self._plans is not None
        try:
            write_metadata(write.aside, self._metadata, self._plans, written)
            write.marker["metadata_crc32"] = catalog.crc32_of_metadata(write.aside)
            write.marker["files"] = catalog.file_sizes(write.aside)
            catalog.publish(self._folder, write.aside, write.final, write.marker)
            catalog.prune(self._folder, self._keep_last, self._keep_every)
        except OSError as error:
            raise _told(error, write.aside, write) from error

    def _proceed(self, write: _Write) -> None:
        """The next part, if all ranks are done with the one before; all ranks learn of an error of one."""
        error = write.task.exception() if write.task.done() else None
        status = topology.highest(_FAILED if error else _DONE if write.task.done() else _BUSY)
        if status == _FAILED:
            self._give_up(error)
        elif status == _DONE and not write.published:
            written = topology.gather(write.task.result())
            write.published, write.task = True, Future()
            if written is None:
                write.task.set_result(None)
            else:
                write.task = self._thread.submit(self._publish, write, written)
        elif status == _DONE:
            self._write = None
            seconds = time.monotonic() - write.began
            stalled = write.stalled if self._in_background else write.stalled + seconds
            self._completed(Saved(write.final, write.marker["step"], stalled, write.waited, seconds))

    def _give_up(self, error: BaseException | None) -> None:
        """End on all ranks with what one has met, and leave nothing half-written."""
        self._write = None
        self.close()
        try:
            with topology.together():
                if error is not None:
                    raise error
        finally:  # all ranks have stopped writing
            if self._engine.layout.rank == 0:
                catalog.clean(self._folder)


def _told(error: OSError, path: Path, write: _Write) -> Exception:
    """A full disk in plain words; another error as it is."""
    if error.errno not in _NO_ROOM:
        return error
    folder = write.aside.parent
    free = f"{shutil.disk_usage(folder).free:,} bytes are free there, " if is_local(folder) else ""
    return StorageError(
        f"{path} cannot be written: {error.strerror}; {free}this process alone writes {write.bytes:,}. "
        "Earlier checkpoints are as they were: make room (or lower checkpoint.keep_last) and start the run again"
    )
