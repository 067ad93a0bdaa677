"""Jobs wait their turn before a few threads, and each caller's turn comes round.

What needs the model is a job: an answer, which the model decodes together with those of the other threads, or something
short (embeddings), which it does between two steps of them. What needs only the store goes past the queue.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from typing import Any, TypeVar

from agentmem.server.failures import Failure

T = TypeVar("T")


@dataclass(eq=False)
class Job:
    """Something to be done with the model, and its outcome."""

    work: Callable[[], Any]
    context: Context = field(default_factory=copy_context)
    """Of who asked for it: spans of the job belong to the request's."""
    outcome: Future[Any] = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)


class Worker:
    """A fair queue before some threads: first come, first served within a caller, and the callers in turn.

    So who sends a hundred requests at once delays the others by one, not by a hundred.

    Args:
        threads: jobs that are done at once.
        per_caller: most jobs of one caller that wait.
        in_all: most jobs that wait.
        waited: told how many seconds each job waited.
    """

    def __init__(
        self,
        *,
        threads: int = 1,
        per_caller: int,
        in_all: int,
        waited: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self._per_caller, self._in_all, self._waited = per_caller, in_all, waited
        self._queues: OrderedDict[Hashable, deque[Job]] = OrderedDict()
        self._changed = threading.Condition()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._run, name="agentmem-worker", daemon=True) for _ in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Jobs that wait."""
        with self._changed:
            return sum(len(queue) for queue in self._queues.values())

    def submit(self, caller: Hashable, work: Callable[[], T]) -> Future[T]:
        """Queue a job for a caller. A future that is cancelled before its turn is passed over.

        Raises:
            Failure: 503, too many jobs wait already, or the server is about to end.
        """
        job = Job(work)
        with self._changed:
            if self._closed:
                raise Failure(503, "the server is shutting down", code="shutting_down")
            queue = self._queues.get(caller, ())
            waiting = [job for job in queue if not job.outcome.cancelled()]
            if len(waiting) >= self._per_caller or sum(map(len, self._queues.values())) >= self._in_all:
                raise Failure(503, "too many requests are waiting; try again later", code="overloaded", retry_after=5)
            self._queues.setdefault(caller, deque()).append(job)
            self._changed.notify()
        return job.outcome

    async def run(self, caller: Hashable, work: Callable[[], T]) -> T:
        """``submit``, awaited."""
        return await asyncio.wrap_future(self.submit(caller, work))

    def close(self) -> None:
        """Finish what was accepted, then end. Nothing new is accepted."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _next(self) -> Job | None:
        """The next job, of the caller whose turn it is; None when all is done and no more will come."""
        with self._changed:
            while not self._queues:
                if self._closed:
                    return None
                self._changed.wait()
            caller, queue = self._queues.popitem(last=False)
            job = queue.popleft()
            if queue:  # to the end of the line
                self._queues[caller] = queue
            return job

    def _run(self) -> None:
        while (job := self._next()) is not None:
            if not job.outcome.set_running_or_notify_cancel():
                continue
            self._waited(time.monotonic() - job.since)
            try:
                job.outcome.set_result(job.context.run(job.work))
            except BaseException as error:  # noqa: BLE001  # raised where the outcome is awaited
                job.outcome.set_exception(error)
