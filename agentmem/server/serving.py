"""One reply on its way to a client: made in the worker's thread, read in the event loop, stopped when nobody reads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse
from starlette.types import Receive, Send
from starlette.types import Scope as AsgiScope

from agentmem.llm import MemoryLLM
from agentmem.records import Reply, Scope
from agentmem.server.failures import Failure
from agentmem.server.observe import Metrics, span
from agentmem.server.worker import Worker
from agentmem.turns import ReplyStream

T = TypeVar("T")


class Host:
    """What every request handler works with."""

    def __init__(self, llm: MemoryLLM, answers: Worker, lookups: Worker, metrics: Metrics) -> None:
        self.llm, self.metrics = llm, metrics
        self.answers, self.lookups = answers, lookups

    def check_model(self, name: str) -> None:
        """Raises Failure (404) for a model that is not the one that is served."""
        if name != self.llm.name:
            raise Failure(404, f"there is no model {name!r:.80} here", code="model_not_found", param="model")

    def room(self, wanted: int) -> int:
        """Most tokens of a reply when a client asks for ``wanted``: half of the model's context, the rest is prompt."""
        return min(wanted, self.llm.model.max_positions // 2)

    async def with_model(self, request: Request, scope: Scope, work: Callable[[], T]) -> T:
        """Run something short that needs the model, in its turn, without waiting for answers that are being written.

        Given up when the client goes away.
        """
        return await unless_gone(request, self.lookups.run((scope.user, scope.agent), work))

    async def reply(self, request: Request, scope: Scope, begin: Callable[[], ReplyStream]) -> Serving:
        """Begin a reply; returns when its first piece is there, or all of it."""
        serving = Serving(self, (scope.user, scope.agent), await run_in_threadpool(begin))
        try:
            await unless_gone(request, serving.begun())
        except BaseException:
            serving.cancel()
            raise
        return serving


def host_of(request: Request) -> Host:
    """The host of the application that a request came to."""
    host: Host = request.app.state.host
    return host


class Serving:
    """A reply that is being generated for one request."""

    def __init__(self, host: Host, caller: tuple[str, str], stream: ReplyStream) -> None:
        self._host, self._stream = host, stream
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[str | None] = asyncio.Queue()
        self._first: str | None = None
        self._ended = False
        self._outcome = host.answers.submit(caller, self._generate)

    async def begun(self) -> None:
        """Wait for the first piece. Raises what went wrong before it."""
        self._first = await self._pieces.get()
        if self._first is None:
            self._ended = True
            await self.reply()

    async def pieces(self) -> AsyncIterator[str]:
        """The pieces of text, as they come."""
        piece = self._first
        while piece is not None:
            yield piece
            piece = await self._pieces.get()
        self._ended = True

    async def reply(self) -> Reply:
        """The whole reply, when it is there. Raises what went wrong."""
        return await asyncio.shield(asyncio.wrap_future(self._outcome))

    async def whole(self, request: Request) -> Reply:
        """As ``reply``; generation stops when the client goes away."""
        try:
            return await unless_gone(request, self.reply())
        except BaseException:
            self.cancel()
            raise

    def cancel(self) -> None:
        """Nobody reads on: stop at the next token, or do not begin."""
        self._outcome.cancel()
        self._stream.cancel()

    def _generate(self) -> Reply:
        """In the worker's thread."""
        try:
            with span("agentmem.reply"):
                for piece in self._stream:
                    self._tell(piece)
            reply = self._stream.reply
            self._host.metrics.replied(reply)
            return reply
        finally:
            self._tell(None)

    def _tell(self, piece: str | None) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, piece)


class EventStream(StreamingResponse):
    """Server-sent events of a reply. However it ends, generation ends with it."""

    def __init__(self, events: AsyncIterator[str], serving: Serving) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._serving = serving

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Send the events until the reply, or the client's patience, ends."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._serving.cancel()


class Gone(Exception):
    """The client went away; there is nobody to answer."""


async def unless_gone(request: Request, awaitable: Awaitable[T]) -> T:
    """What is awaited, given up when the client goes away. Raises Gone then."""

    async def disconnected() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    gone = asyncio.ensure_future(disconnected())
    wanted: asyncio.Future[Any] = asyncio.ensure_future(awaitable)
    try:
        await asyncio.wait({gone, wanted}, return_when=asyncio.FIRST_COMPLETED)
        if not wanted.done():
            raise Gone
        result: T = wanted.result()
        return result
    finally:
        for task in (gone, wanted):
            if not task.done():
                task.cancel()
