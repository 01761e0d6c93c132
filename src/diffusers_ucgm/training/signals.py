"""Signals that end a run after the step at hand."""

import signal
import threading
from types import FrameType


__all__ = ["StopSignals"]

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """Records SIGTERM and SIGINT while entered, unless this process was started to ignore them.

    A script's shell starts what runs in its background so, for which Ctrl-C is not meant. In a thread that is not the
    main one Python allows no handlers.

    Attributes:
        received: The last signal, or None.
    """

    def __init__(self) -> None:
        """Start without a signal."""
        self.received: signal.Signals | None = None
        self._handlers: dict[signal.Signals, signal.Handlers | object] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            heeded = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
            self._handlers = {number: signal.signal(number, self._record) for number in heeded}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]
        self._handlers = {}

    def _record(self, number: int, _frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
