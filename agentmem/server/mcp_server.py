"""The memories of a user as an MCP server: tools, a resource per memory, and a prompt. Needs the extra ``mcp``."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from importlib.metadata import version
from typing import Annotated, Any, Literal, ParamSpec, TypeVar
from urllib.parse import quote, unquote

from anyio.to_thread import run_sync
from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ResourceNotFoundError, ToolError
from mcp.server.transport_security import TransportSecuritySettings
from mcp.types import Resource, ToolAnnotations
from pydantic import BaseModel, Field
from starlette.applications import Starlette

from agentmem.errors import AgentMemError, InvalidInput, NotFound
from agentmem.llm import MemoryLLM
from agentmem.memories import Memories
from agentmem.records import Forgotten, Memory, PruneReport, Role

INSTRUCTIONS = """A memory that lasts, kept on this machine. Recall before you answer what may depend on earlier talks;
remember what should outlast this one, in the user's own words; forget what the user asks you to forget."""
LISTED = 100
"""Newest memories that are listed as resources; the template reaches all."""

P = ParamSpec("P")
T = TypeVar("T")
Limit = Annotated[int, Field(ge=1, le=100, description="Most memories to return.")]
Tags = Annotated[list[str] | None, Field(description="Only memories with every one of these tags.")]

_READS = ToolAnnotations(read_only_hint=True, open_world_hint=False)
_ADDS = ToolAnnotations(read_only_hint=False, destructive_hint=False, open_world_hint=False)
_REMOVES = ToolAnnotations(read_only_hint=False, destructive_hint=True, idempotent_hint=True, open_world_hint=False)


class Remembered(BaseModel):
    """One memory."""

    id: str
    text: str
    role: Role
    created_at: datetime
    tags: list[str]
    pinned: bool
    uses: int
    score: float | None = None
    """How well it fits the query, where there was one."""


class Listed(BaseModel):
    """Some memories, newest first."""

    memories: list[Remembered]
    next_cursor: str | None


def make_mcp(llm: MemoryLLM, *, user: str, agent: str = "") -> MCPServer[Any]:
    """The MCP server of one user's memories.

    Raises:
        InvalidInput: names that cannot be used.
    """
    memories = llm.memories(user=user, agent=agent)
    return mcp_of(lambda: memories)


def mcp_of(mine: Callable[[], Memories]) -> MCPServer[Any]:
    """The MCP server of the memories that ``mine`` gives, asked at every call: whose they are is up to the caller."""
    server = _Server(mine)

    @server.tool(annotations=_ADDS)
    @_told
    async def remember(
        text: Annotated[str, Field(description="What to remember, in the user's own words.")],
        tags: Annotated[list[str] | None, Field(description="Words to find it by.")] = None,
    ) -> list[Remembered]:
        """Remember a text for good. A long one becomes several memories."""
        added = await run_sync(functools.partial(mine().add, text, tags=tags or ()))
        return [_shown(memory) for memory in added]

    @server.tool(annotations=_READS)
    @_told
    async def recall(
        query: Annotated[str, Field(description="What to look for: a question or a few words.")],
        limit: Limit = 8,
        tags: Tags = None,
    ) -> list[Remembered]:
        """Find memories by meaning and by words, best first."""
        narrow: dict[str, Any] = {"tags": tags} if tags else {}
        hits = await run_sync(functools.partial(mine().search, query, top_k=limit, **narrow))
        return [_shown(hit.memory, hit.score) for hit in hits]

    @server.tool(name="list", annotations=_READS)
    @_told
    async def list_memories(
        limit: Limit = 20,
        cursor: Annotated[str | None, Field(description="next_cursor of the page before.")] = None,
        role: Annotated[
            Literal["user", "assistant", "system", "tool"] | None, Field(description="Who said it.")
        ] = None,
        tags: Tags = None,
    ) -> Listed:
        """List memories, newest first, a page at a time."""
        narrow: dict[str, Any] = {name: value for name, value in (("role", role), ("tags", tags)) if value}
        found, following = await run_sync(functools.partial(mine().page, limit=limit, cursor=cursor, **narrow))
        return Listed(memories=[_shown(memory) for memory in found], next_cursor=following)

    @server.tool(annotations=_REMOVES)
    @_told
    async def forget(
        ids: Annotated[
            list[str], Field(min_length=1, max_length=100, description="Ids, as recall and list give them.")
        ],
    ) -> Forgotten:
        """Forget memories, all or (if one is not there) none. Nothing of them remains."""
        return await run_sync(mine().delete, ids)

    @server.tool(annotations=_REMOVES)
    @_told
    async def prune(
        max_memories: Annotated[int | None, Field(ge=0, description="Most memories to keep.")] = None,
        unused_for: Annotated[
            str | None, Field(description="Forget what was not used for so long: 12h, 30d, 8w.")
        ] = None,
        dry_run: Annotated[bool, Field(description="True only says what would go, and why.")] = True,
    ) -> PruneReport:
        """Forget the least used memories; unless dry_run is false, only say which ones would go."""
        limits: dict[str, Any] = {"max_memories": max_memories, "unused_for": unused_for, "dry_run": dry_run}
        return await run_sync(functools.partial(mine().prune, **limits))

    @server.resource("memory:///{id}", name="memory", description="The text of one memory.", mime_type="text/plain")
    async def memory(id: str) -> str:
        try:
            found = await run_sync(mine().get, unquote(id))
        except (NotFound, InvalidInput) as error:
            raise ResourceNotFoundError(str(error)) from error
        return found.text

    @server.prompt(name="recall", description="Answer with what is remembered about a topic.")
    async def recall_prompt(topic: str) -> str:
        """Answer with what is remembered about a topic."""
        return f"Use the tool recall to find what is remembered about {topic}. Then say what you know about it."

    return server


def http_app(server: MCPServer[Any]) -> Starlette:
    """The server over streamable HTTP, at ``/mcp``: for this machine only, addressed by no other name."""
    return server.streamable_http_app(transport_security=known_as(["127.0.0.1", "localhost", "[::1]"]))


def known_as(hosts: Sequence[str]) -> TransportSecuritySettings:
    """Only these names may stand in a request's Host and Origin; with "*", any."""
    return TransportSecuritySettings(
        enable_dns_rebinding_protection="*" not in hosts,
        allowed_hosts=[name for host in hosts for name in (host, f"{host}:*")],
        allowed_origins=[f"http://{host}{port}" for host in hosts for port in ("", ":*")],
    )


class _Server(MCPServer[Any]):
    """Lists the newest memories among its resources."""

    def __init__(self, mine: Callable[[], Memories]) -> None:
        super().__init__("agentmem", title="agentmem", instructions=INSTRUCTIONS, version=version("agentmem-kv"))
        self._mine = mine

    async def list_resources(self) -> list[Resource]:
        """The newest memories."""
        newest = await run_sync(functools.partial(self._mine().list, limit=LISTED))
        return [
            Resource(
                uri=f"memory:///{quote(memory.id, safe='')}",
                name=memory.id,
                title=" ".join(memory.text.split())[:80],
                mime_type="text/plain",
            )
            for memory in newest
        ]


def _shown(memory: Memory, score: float | None = None) -> Remembered:
    return Remembered(
        id=memory.id,
        text=memory.text,
        role=memory.role,
        created_at=memory.created_at,
        tags=list(memory.tags),
        pinned=memory.pinned,
        uses=memory.uses,
        score=score,
    )


def _told(tool: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
    """A tool whose errors the model is told: they say what to do."""

    @functools.wraps(tool)
    async def told(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await tool(*args, **kwargs)
        except AgentMemError as error:
            raise ToolError(str(error)) from error

    return told
