"""A thread that fetches ahead of a reader, in the order of use."""

import logging
import threading
from collections.abc import Callable, Iterable, Iterator

from bigtrain.data.remote import Cancelled
from bigtrain.errors import UserError

_log = logging.getLogger("bigtrain")

_END_SECONDS = 5.0
"""How long `close` waits for a server that is silent; the thread keeps no process from ending."""


class Prefetcher:
    """Calls `fetch(number, stop)` for numbers in order, in a thread of its own, until `close`.

    A UserError ends the list: whoever needs what could not be fetched tries again, and tells.
    """

    def __init__(self, fetch: Callable[[int, threading.Event], None]) -> None:
        self._fetch = fetch
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._numbers: Iterator[int] | None = None
        self._thread: threading.Thread | None = None

    def start(self, numbers: Iterable[int]) -> None:
        """Fetch these from now on, in the place of what is left of an earlier list; what is on its way still comes."""
        with self._changed:
            self._numbers = iter(numbers)
            if self._thread is None and not self._stop.is_set():
                self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)
                self._thread.start()
            self._changed.notify()

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._stop.set()
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(_END_SECONDS)

    def _run(self) -> None:
        while (taken := self._take()) is not None:
            number, numbers = taken
            try:
                self._fetch(number, self._stop)
            except Cancelled:
                return
            except UserError as error:
                _log.warning("fetching ahead stopped: %s", error)
                with self._changed:
                    if self._numbers is numbers:
                        self._numbers = None

    def _take(self) -> tuple[int, Iterator[int]] | None:
        """The next number and the list it is from, when there is one; None at the end."""
        with self._changed:
            while not self._stop.is_set():
                if self._numbers is not None:
                    for number in self._numbers:
                        return number, self._numbers
                    self._numbers = None
                self._changed.wait()
            return None
