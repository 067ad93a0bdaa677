"""The lock around a model: whoever has waited longest is next."""

from __future__ import annotations

import threading
from collections import deque
from types import TracebackType


class FairLock:
    """A reentrant lock that is handed to the thread that has waited longest.

    ``threading.RLock`` lets the thread that releases it take it again at once, so a thread that decodes token after
    token would keep all others out. Here who waits gets it at the next release: after one decode step at most.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._waiting: deque[tuple[int, threading.Lock]] = deque()
        self._owner: int | None = None
        self._depth = 0

    def acquire(self) -> None:
        """Wait for the lock; a thread that holds it already holds it once more."""
        me = threading.get_ident()
        with self._guard:
            if self._owner in (None, me):
                self._owner = me
                self._depth += 1
                return
            turn = threading.Lock()
            turn.acquire()
            self._waiting.append((me, turn))
        try:
            turn.acquire()
        except BaseException:  # KeyboardInterrupt: give up the place in the line, or the lock if it was just given
            with self._guard:
                given = (me, turn) not in self._waiting
                if not given:
                    self._waiting.remove((me, turn))
            if given:
                self.release()
            raise

    def release(self) -> None:
        """Give the lock to the next thread in the line, once it was released as often as acquired."""
        with self._guard:
            if self._owner != threading.get_ident():
                raise RuntimeError("the lock is released by a thread that does not hold it")
            self._depth -= 1
            if self._depth:
                return
            if not self._waiting:
                self._owner = None
                return
            self._owner, turn = self._waiting.popleft()
            self._depth = 1
            turn.release()

    def __enter__(self) -> FairLock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
