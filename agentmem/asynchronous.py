"""A reply for event loops: generated in a thread of its own, read with ``async for``."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass

from agentmem.errors import InvalidInput
from agentmem.records import Reply
from agentmem.turns import ReplyStream


@dataclass(eq=False)
class _Run:
    """What the thread shares. It holds no reference to AsyncReplyStream, so one that is dropped ends its run."""

    begin: Callable[[], ReplyStream]
    loop: asyncio.AbstractEventLoop
    pieces: asyncio.Queue[str | None]
    stream: ReplyStream | None = None
    closed: bool = False
    reply: Reply | None = None
    error: BaseException | None = None

    def close(self) -> None:
        self.closed = True
        if self.stream is not None:
            self.stream.cancel()

    def tell(self, piece: str | None) -> None:
        try:
            self.loop.call_soon_threadsafe(self.pieces.put_nowait, piece)
        except RuntimeError:  # the loop was closed: nobody reads on
            self.close()

    def work(self) -> None:
        """Body of the thread. Whatever goes wrong is raised where the pieces are awaited."""
        try:
            self.stream = self.begin()
            if self.closed:  # before there was a stream to cancel
                self.stream.cancel()
            for piece in self.stream:
                self.tell(piece)
            self.reply = self.stream.reply
        except BaseException as error:  # noqa: BLE001  # re-raised in the event loop
            self.error = error
        finally:
            self.tell(None)


class AsyncReplyStream:
    """The reply as it is generated, for ``async for``; ``reply`` is whole once the pieces have run out.

    Generation begins with the first piece that is awaited, in a thread of its own: the event loop is never held up.
    ``aclose``, leaving the ``async with`` block, or cancelling the task that does either stops it at the next token;
    what was said until then is remembered. Bad input is raised with the first piece.
    """

    def __init__(self, begin: Callable[[], ReplyStream]) -> None:
        self._begin = begin
        self._run: _Run | None = None
        self._ended = False

    def __aiter__(self) -> AsyncReplyStream:
        return self

    async def __anext__(self) -> str:
        if self._ended:
            raise StopAsyncIteration
        if self._run is None:
            run = self._run = _Run(self._begin, asyncio.get_running_loop(), asyncio.Queue())
            weakref.finalize(self, run.close)
            threading.Thread(target=run.work, name="agentmem-reply").start()
        piece = await self._run.pieces.get()
        if piece is not None:
            return piece
        self._ended = True
        if self._run.error is not None:
            raise self._run.error
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Stop generating, and wait until what was said is stored."""
        if self._run is None:
            self._ended = True
            return
        self._run.close()
        while not self._ended:
            self._ended = await self._run.pieces.get() is None

    async def __aenter__(self) -> AsyncReplyStream:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    @property
    def reply(self) -> Reply:
        """The whole reply. Raises InvalidInput while pieces are still to come."""
        if self._run is None or self._run.reply is None:
            raise InvalidInput("the reply is not complete: iterate over the stream to its end, or close it, first")
        return self._run.reply
