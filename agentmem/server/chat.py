"""``/v1/chat/completions``: a client sends the whole dialogue each time; what is known of it is neither stored nor
embedded again, and what the window does not hold is memory."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Any
from uuid import uuid4

from fastapi import APIRouter, Request, Response

from agentmem.dialogue import session_of
from agentmem.errors import AgentMemError
from agentmem.records import Message, Reply, Scope
from agentmem.server.access import Admitted
from agentmem.server.chat_wire import (
    FINISH,
    ChatChunk,
    ChatCompletion,
    ChatReply,
    ChatRequest,
    ChatUsage,
    Choice,
    ChunkCall,
    ChunkChoice,
    Delta,
    Finish,
)
from agentmem.server.dialogue import CallItem, Extension, choose, to_messages
from agentmem.server.failures import Failure, note
from agentmem.server.serving import EventStream, Host, Serving, host_of
from agentmem.turns import ReplyStream

router = APIRouter(prefix="/v1", tags=["openai"])

_EVENTS = {"text/event-stream": {"schema": {"description": "Events of ChatChunk objects, then [DONE]."}}}


@router.post("/chat/completions", response_model=ChatCompletion, responses={200: {"content": _EVENTS}})
async def chat(request: Request, body: ChatRequest, caller: Admitted) -> ChatCompletion | Response:
    """Answer a dialogue, with the memories of its user."""
    host = host_of(request)
    host.check_model(body.model)
    scope = caller.scope(body.user)
    messages = to_messages(body.messages)
    session = caller.session or session_of(messages)
    serving = await host.reply(request, scope, partial(_begin, host, scope, session, messages, body))
    answer = Answer(body, scope, session)
    if body.stream:
        return EventStream(answer.events(serving), serving)
    return answer.whole(await serving.whole(request))


def _begin(host: Host, scope: Scope, session: str, messages: list[Message], body: ChatRequest) -> ReplyStream:
    conversation = host.llm.conversation(user=scope.user, agent=scope.agent, session=session)
    options: dict[str, Any] = {"temperature": body.temperature or 0.0, "seed": body.seed}
    if body.response_format is not None:
        options["response_format"] = body.response_format.model_dump(by_alias=True, exclude_none=True)
    if body.top_p is not None:
        options["top_p"] = body.top_p
    if wanted := body.max_completion_tokens or body.max_tokens:
        options["max_new_tokens"] = host.room(wanted)
    return conversation.stream(messages, stop=body.stop or (), **choose(body.tools, body.tool_choice), **options)


class Answer:
    """One reply as chat completions say it."""

    def __init__(self, body: ChatRequest, scope: Scope, session: str) -> None:
        self._scope, self._session = scope, session
        self._head: dict[str, Any] = {
            "id": f"chatcmpl-{uuid4().hex}",
            "created": int(time.time()),
            "model": body.model,
        }
        self._wanted = body.agentmem
        self._usage = body.stream_options is not None and body.stream_options.include_usage

    def whole(self, reply: Reply) -> ChatCompletion:
        """All at once."""
        calls = [CallItem.of(call) for call in reply.tool_calls]
        message = ChatReply(content=reply.text or (None if calls else ""), tool_calls=calls or None)
        return ChatCompletion(
            **self._head,
            choices=[Choice(message=message, finish_reason=FINISH[reply.finish_reason])],
            usage=ChatUsage.of(reply.usage),
            agentmem=Extension.of(reply, self._scope, self._session, self._wanted),
        )

    async def events(self, serving: Serving) -> AsyncIterator[str]:
        """Piece by piece, as server-sent events."""
        yield self._chunk(Delta(role="assistant", content=""))
        try:
            async for piece in serving.pieces():
                yield self._chunk(Delta(content=piece))
            reply = await serving.reply()
        except (AgentMemError, Failure, RuntimeError) as error:  # too late for a status
            note(error)
            yield event(Failure.of(error).body)
            return
        if reply.tool_calls:
            calls = [ChunkCall(index=i, **CallItem.of(call).model_dump()) for i, call in enumerate(reply.tool_calls)]
            yield self._chunk(Delta(tool_calls=calls))
        extension = Extension.of(reply, self._scope, self._session, self._wanted)
        yield self._chunk(Delta(), finish_reason=FINISH[reply.finish_reason], agentmem=extension)
        if self._usage:
            yield event(ChatChunk(**self._head, choices=[], usage=ChatUsage.of(reply.usage)))
        yield "data: [DONE]\n\n"

    def _chunk(self, delta: Delta, finish_reason: Finish | None = None, agentmem: Extension | None = None) -> str:
        choice = ChunkChoice(delta=delta, finish_reason=finish_reason)
        return event(ChatChunk(**self._head, choices=[choice], agentmem=agentmem))


def event(value: ChatChunk | dict[str, Any]) -> str:
    """One server-sent event."""
    text = json.dumps(value) if isinstance(value, dict) else value.model_dump_json(exclude_none=True)
    return f"data: {text}\n\n"
