"""``/v1/responses/{id}``: an answer of earlier, as it is remembered. What is forgotten of it is gone here too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from agentmem.memories import Memories
from agentmem.records import Memory, Role, Scope
from agentmem.server.access import Admitted
from agentmem.server.failures import ErrorReply, Failure
from agentmem.server.responses import RESPONSE_ID, items
from agentmem.server.responses_wire import ResponseObject
from agentmem.server.serving import Host, host_of
from agentmem.tools import stored_message
from agentmem.turns import in_order, turn_text

router = APIRouter(prefix="/v1", tags=["openai"], responses={404: {"model": ErrorReply}})

MOST = 10_000
"""Chunks of one answer: more than any has."""

Whose = Annotated[str | None, Query(description="Whose memory it is; else the header's or the key's user.")]


class DeletedResponse(BaseModel):
    """The answer is forgotten."""

    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True


@router.get("/responses/{id}")
async def retrieve_response(request: Request, id: str, caller: Admitted, user: Whose = None) -> ResponseObject:
    """An answer of earlier: its words and calls. How it was asked for is not kept."""
    return await run_in_threadpool(_retrieve, host_of(request), caller.scope(user), id)


@router.delete("/responses/{id}")
async def delete_response(request: Request, id: str, caller: Admitted, user: Whose = None) -> DeletedResponse:
    """Forget an answer. What it answered stays a memory, until that is deleted as one."""

    def delete() -> None:
        memories, chunks, _ = _find(host_of(request), scope, id)
        memories.delete([chunk.id for chunk in chunks])

    scope = caller.scope(user)
    await run_in_threadpool(delete)
    return DeletedResponse(id=id)


def _find(host: Host, scope: Scope, id: str) -> tuple[Memories, Sequence[Memory], str]:
    """The memories that an answer is, in order, and its turn. Raises Failure (404) when there is none in this scope."""
    memories = host.llm.memories(user=scope.user, agent=scope.agent)
    if found := RESPONSE_ID.fullmatch(id):
        chunks = memories.list(limit=MOST, turns=[found[2]])
        if chunks:
            return memories, in_order(chunks), found[2]
    raise Failure(404, "there is no such response", code="not_found", param="id")


def _retrieve(host: Host, scope: Scope, id: str) -> ResponseObject:
    _, chunks, turn = _find(host, scope, id)
    said = stored_message(Role.ASSISTANT, turn_text(chunks))
    return ResponseObject(
        id=id,
        created_at=int(chunks[0].created_at.timestamp()),
        status="completed",
        model=host.llm.name,
        output=items(turn, said.content, said.tool_calls, "completed"),
    )
