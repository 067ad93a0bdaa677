"""How long a client may take to send its request: a body that trickles in holds no worker for ever."""

from __future__ import annotations

import asyncio

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agentmem.server.failures import Failure


class Patience:
    """ASGI middleware: reads the body to its end, in ``seconds`` at most, before the application sees the request.

    The application's own limit on a body's size, which lies outside, ends the reading of one that is too long.
    """

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        self._app, self._seconds = app, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self._seconds):
                body = await _read(receive)
        except TimeoutError:
            message = f"the request's body took more than {self._seconds:g} seconds"
            await Failure(408, message, code="request_timeout").response(scope, receive, send)
            return
        except HTTPException as error:
            await Failure(error.status_code, "the request's body is too long", code="body_too_large").response(
                scope, receive, send
            )
            return
        if body is None:  # the client is gone
            return
        first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return first.pop() if first else await receive()

        await self._app(scope, replay, send)


async def _read(receive: Receive) -> bytes | None:
    """The whole body; None when the client went away before its end."""
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)
