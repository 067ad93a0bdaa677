"""How much a client may send, and how long it may take: read before anything else is done with a request."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agentmem.server.failures import Failure


class Patience:
    """ASGI middleware: reads the body to its end, ``most`` bytes in ``seconds`` at most, and then goes on.

    Starlette's own limit on bodies answers in plain text, and OpenAI's clients look for an error object.
    """

    def __init__(self, app: ASGIApp, most: int, seconds: float) -> None:
        self._app, self._most, self._seconds = app, most, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self._seconds):
                body = await self._read(receive)
        except TimeoutError:
            message = f"the request's body took more than {self._seconds:g} seconds"
            await Failure(408, message, code="request_timeout").response(scope, receive, send)
            return
        except Failure as failure:
            await failure.response(scope, receive, send)
            return
        if body is None:  # the client is gone
            return
        first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return first.pop() if first else await receive()

        await self._app(scope, replay, send)

    async def _read(self, receive: Receive) -> bytes | None:
        """The whole body; None when the client went away before its end. Raises Failure (413) when it is too long."""
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if len(body) > self._most:
                raise Failure(413, f"a request has at most {self._most} bytes here", code="body_too_large")
            if not message.get("more_body", False):
                return bytes(body)
