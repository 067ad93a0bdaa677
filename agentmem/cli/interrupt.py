"""Ctrl-C ends the reply, not the program."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def catching_interrupt() -> Iterator[threading.Event]:
    """Inside, the first Ctrl-C only sets the event: a turn being stored is never torn. The second one raises."""
    pressed = threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()

    before = signal.signal(signal.SIGINT, on_signal)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)
