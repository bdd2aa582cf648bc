"""A watch on every step: where one takes too long, each rank tells where it is, and the run ends.

A rank that hangs looks from outside like one that computes, and its peers wait for it in a collective. So every rank
watches itself, from a thread, which runs while the main thread waits in C. Should the main thread keep Python's lock
and the thread stand still as well, faulthandler's timer, which needs no lock, does the rest a few seconds later.
"""

import faulthandler
import os
import sys
import threading
import time
import traceback
from pathlib import Path
from types import FrameType

from bigtrain.training import faults, records

LONG_SECONDS = 600.0
"""What a start and its first step may take at least, where kernels are chosen, compiled and connected; and what hangs
on storage."""
_PATIENCE = 5.0
"""What takes so many times as long as the longest of its kind before is taken for hung, and nothing sooner."""
_LEAVE_AFTER = 3.0  # seconds; until the other ranks, whose step began a little later, have told theirs
_TICK = 0.25
_OURS = str(Path(__file__).parent.parent)


class Watchdog:
    """Ends the process when it is not fed for `seconds`, or five times what the longest step so far took; 0 turns it
    off. Watches from `with` to its end."""

    def __init__(self, seconds: float, output_dir: Path, rank: int, world_size: int) -> None:
        self._seconds = seconds
        self._output_dir = output_dir
        self._rank = rank
        self._world_size = world_size
        self._doing, self._step, self._limit = "", 0, 0.0
        self._deadline = float("inf")
        self._fed_at, self._long = 0.0, True
        self._longest = {True: 0.0, False: 0.0}
        self._closed = threading.Event()

    def __enter__(self) -> "Watchdog":
        if self._seconds:
            path = records.own_log(self._output_dir, self._rank)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._log = path.open("a", encoding="utf-8")
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._deadline = float("inf")
        if self._seconds:
            faulthandler.cancel_dump_traceback_later()

    def feed(self, doing: str, step: int, *, long: bool = False) -> None:
        """Begin to count anew.

        Args:
            doing: What begins now, for the message: "step 17".
            step: Steps done.
            long: It may take `LONG_SECONDS`: the first of its kind, or waiting for storage.
        """
        if self._seconds:
            self._doing, self._step = doing, step
            now = time.monotonic()
            if self._fed_at:
                self._longest[self._long] = max(self._longest[self._long], now - self._fed_at)
            self._fed_at, self._long = now, long
            self._limit = max(self._seconds, _PATIENCE * self._longest[long], LONG_SECONDS if long else 0.0)
            self._deadline = now + self._limit
            faulthandler.dump_traceback_later(self._limit + 2 * _LEAVE_AFTER, exit=True, file=self._log)

    def _watch(self) -> None:
        while not self._closed.wait(_TICK):
            if time.monotonic() > self._deadline:
                self._bark()
                return

    def _bark(self) -> None:
        leave = threading.Timer(_LEAVE_AFTER, os._exit, (1,))  # though this thread hang too, on a lost file system
        leave.daemon = True
        leave.start()
        text = f"{self._doing} has taken more than {self._limit:g} seconds: {_whereabouts()}"
        told = faults.record("hang", text)
        if not told:
            sys.stderr.write(f"rank {self._rank}: {text}\n")
        self._log.write(f"{text}\n")
        self._log.flush()
        faulthandler.dump_traceback(self._log, all_threads=True)
        if self._rank == 0:
            details = {"during": self._doing, "seconds": self._limit}
            records.event(self._output_dir, "hang", self._step, self._world_size, **details)


def _whereabouts() -> str:
    """The main thread's innermost frame, and the innermost that is ours. Reads no files: these may be what hangs."""
    ident = threading.main_thread().ident
    assert ident is not None, "it runs"
    frames = [frame for frame, _ in traceback.walk_stack(sys._current_frames()[ident])]
    ours = [frame for frame in frames if frame.f_code.co_filename.startswith(_OURS)]
    text = f"in {_place(frames[0])}"
    return f"{text}, called from {_place(ours[0])}" if ours and ours[0] is not frames[0] else text


def _place(frame: FrameType) -> str:
    file = "/".join(Path(frame.f_code.co_filename).parts[-3:])
    return f"{frame.f_code.co_qualname} ({file}:{frame.f_lineno})"
