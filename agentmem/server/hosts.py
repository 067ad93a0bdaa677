"""Under which names the server may be addressed: against pages that reach it under a name of their own."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agentmem.server.failures import Failure


class KnownHosts:
    """ASGI middleware: refuses other names in the header Host. "*" in ``names`` allows any.

    Starlette's own decides; it would answer in plain text, and OpenAI's clients look for an error object.
    """

    def __init__(self, app: ASGIApp, names: Sequence[str]) -> None:
        self._app, self._names = app, list(names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        known = False

        async def pass_on(scope: Scope, receive: Receive, send: Send) -> None:
            nonlocal known
            known = True

        async def drop(message: Message) -> None:
            pass

        decide = TrustedHostMiddleware(pass_on, allowed_hosts=self._names, www_redirect=False)
        await decide(scope, receive, drop)
        if known:
            await self._app(scope, receive, send)
            return
        message = "this server does not answer to the name in the header Host"
        await Failure(400, message, code="unknown_host").response(scope, receive, send)
