"""Signals that end a run after the step at hand."""

import signal
import threading
from types import FrameType


__all__ = ["StopSignals"]

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """Records SIGTERM and SIGINT while entered; in a thread that is not the main one Python allows no handlers.

    Attributes:
        received: The last signal, or None.
    """

    def __init__(self) -> None:
        """Start without a signal."""
        self.received: signal.Signals | None = None
        self._handlers: dict[signal.Signals, signal.Handlers | object] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._record) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]
        self._handlers = {}

    def _record(self, number: int, _frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
