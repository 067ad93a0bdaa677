"""``/mcp``: the MCP server on the same port as everything else, behind the same door."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as AsgiScope

from agentmem.llm import MemoryLLM
from agentmem.memories import Memories
from agentmem.records import Scope
from agentmem.server.access import Door
from agentmem.server.failures import Failure
from agentmem.server.mcp_server import known_as, mcp_of

PATH = "/mcp"


class McpRoute:
    """An ASGI application that admits each request by its key and serves it the memories of its scope, and no others.

    Every request is served by itself: there are no sessions, so there is none that another key could take over, and
    clients do not notice a restart.
    """

    def __init__(self, llm: MemoryLLM, door: Door, hosts: Sequence[str]) -> None:
        self._door = door
        self._whose: ContextVar[Scope] = ContextVar("agentmem_mcp_scope")
        self._llm = llm
        root = logging.getLogger()
        handlers, level = root.handlers[:], root.level
        server = mcp_of(self._mine)
        root.handlers = handlers  # the SDK sets up logging, as for a process of its own
        root.setLevel(level)
        server.streamable_http_app(stateless_http=True, json_response=True, transport_security=known_as(hosts))
        self._sessions = server.session_manager

    def running(self) -> AbstractAsyncContextManager[None]:
        """It serves inside."""
        return self._sessions.run()

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """One request."""
        request = Request(scope)
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        answer: ASGIApp = self._sessions.handle_request
        try:
            caller = await self._door.admit(request, token.strip() if kind.lower() == "bearer" else None)
            before = self._whose.set(caller.scope())
        except Failure as failure:
            answer = failure.response
            await answer(scope, receive, send)
            return
        try:
            await answer(scope, receive, send)
        finally:
            self._whose.reset(before)

    def _mine(self) -> Memories:
        whose = self._whose.get()
        return self._llm.memories(user=whose.user, agent=whose.agent)
