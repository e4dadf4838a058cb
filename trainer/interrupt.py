"""Owns Ctrl-C and SIGTERM during a run: the first asks for an orderly end, the second ends at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Whether a signal asked the run to end, and which: this process, or `elsewhere` another one of the run."""

    def __init__(self, elsewhere: Callable[[], int | None] = lambda: None) -> None:
        self._here: int | None = None
        self._elsewhere = elsewhere

    @property
    def signal_number(self) -> int | None:
        """The signal; None for none."""
        return self._elsewhere() if self._here is None else self._here

    def ask(self, number: int) -> None:
        """A signal came."""
        self._here = number

    def __call__(self) -> bool:
        """Whether to end."""
        return self.signal_number is not None


@contextmanager
def stop_on_signals(elsewhere: Callable[[], int | None] = lambda: None) -> Iterator[StopRequest]:
    """Turn the first Ctrl-C or SIGTERM into a request that the loop sees between two steps.

    The earlier handlers are back for a second one, and when the block ends. Off the main thread, where Python
    delivers no signals, nothing is installed.
    """
    request = StopRequest(elsewhere)
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def on_signal(number: int, frame: FrameType | None) -> None:
        request.ask(number)
        restore()

    for number in SIGNALS:
        signal.signal(number, on_signal)
    try:
        yield request
    finally:
        restore()
