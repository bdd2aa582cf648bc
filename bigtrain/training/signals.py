"""Asked to stop: a signal becomes a flag, the flag an agreement of all ranks at a step's end."""

import signal
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""Preemption, the scheduler's warning before a time limit, and Ctrl-C."""


class StopRequest:
    """Notices stop signals between `with` and its end; the second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.received: str | None = None
        """Name of the first signal that came, or None."""
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> "StopRequest":
        for number in STOP_SIGNALS:
            self._before[number] = signal.signal(number, self._notice)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _notice(self, number: int, _: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or signal.Signals(number).name
