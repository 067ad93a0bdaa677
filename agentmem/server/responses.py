"""``/v1/responses``: a client sends only what is new, and names the answer that it follows.

An answer's id holds the ids of two turns: the one that it answers, and its own. Both are in the store, so a dialogue
goes on after a restart, from any of its answers.
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from functools import partial
from typing import Any
from uuid import uuid4

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from agentmem.dialogue import check_dialogue, session_of
from agentmem.errors import AgentMemError
from agentmem.records import Message, Reply, Role, Scope, ToolCall
from agentmem.server.access import Admitted
from agentmem.server.chat import event
from agentmem.server.dialogue import CallItem, Extension, choose, to_messages
from agentmem.server.failures import Failure, note
from agentmem.server.responses_wire import (
    Incomplete,
    OutputCall,
    OutputMessage,
    OutputText,
    ResponseObject,
    ResponseRequest,
    ResponseUsage,
    TextForm,
    to_chat,
)
from agentmem.server.serving import EventStream, Host, Serving, host_of
from agentmem.turns import ReplyStream, with_ids

router = APIRouter(prefix="/v1", tags=["openai"])

RESPONSE_ID = re.compile(r"resp_([0-9a-f]{32})([0-9a-f]{32})")
_EVENTS = {"text/event-stream": {"schema": {"description": "Events of the Responses API."}}}


@router.post("/responses", response_model=ResponseObject, responses={200: {"content": _EVENTS}})
async def respond(request: Request, body: ResponseRequest, caller: Admitted) -> ResponseObject | Response:
    """Answer what is new in a dialogue, with the memories of its user."""
    host = host_of(request)
    host.check_model(body.model)
    scope = caller.scope(body.user)
    answer = Answer(body, scope)
    serving = await host.reply(request, scope, partial(answer.begin, host, caller.session))
    if body.stream:
        return EventStream(answer.events(serving), serving)
    return answer.whole(await serving.whole(request))


class Answer:
    """One reply as the Responses API says it."""

    def __init__(self, body: ResponseRequest, scope: Scope) -> None:
        self._body, self._scope, self._session = body, scope, ""
        self._turn = uuid4().hex
        self._head: dict[str, Any] = {}

    def begin(self, host: Host, session: str | None) -> ReplyStream:
        """Find the dialogue, and say what is new in it. Reads the store; raises what is wrong with the request."""
        body, scope = self._body, self._scope
        system, messages = _split(body)
        messages = check_dialogue(messages).said  # as they are stored: the answer's id holds a turn's id
        after = None
        if body.previous_response_id is not None:
            self._session, after = _find(host, scope, body.previous_response_id)
        else:
            self._session = session or session_of(messages)
        options: dict[str, Any] = {"temperature": body.temperature or 0.0}
        if body.top_p is not None:
            options["top_p"] = body.top_p
        if body.max_output_tokens is not None:
            options["max_new_tokens"] = host.room(body.max_output_tokens)
        if body.text is not None:
            options["response_format"] = body.text.format.chat_form
        conversation = host.llm.conversation(user=scope.user, agent=scope.agent, session=self._session)
        stream = conversation.stream(
            [*system, *messages],
            after=after,
            remember=body.store is not False,
            reply_turn=self._turn,
            **choose([tool.tool for tool in body.tools or ()], body.tool_choice),
            **options,
        )
        asked = (conversation.turns_of(messages) if after is None else with_ids(messages, after))[-1][1]
        self._head = {
            "id": f"resp_{asked}{self._turn}",
            "created_at": int(time.time()),
            "model": body.model,
            "instructions": body.instructions,
            "previous_response_id": body.previous_response_id,
            "tool_choice": body.tool_choice or "auto",
            "text": (body.text or TextForm()).model_dump(by_alias=True, exclude_none=True),
            "tools": [{"parameters": {}, "strict": False, **t.model_dump(exclude_none=True)} for t in body.tools or ()],
            "metadata": body.metadata or {},
            "temperature": body.temperature,
            "top_p": body.top_p,
            "max_output_tokens": body.max_output_tokens,
            "store": body.store is not False,
            "user": body.user,
        }
        return stream

    def whole(self, reply: Reply) -> ResponseObject:
        """All at once."""
        cut = reply.finish_reason in ("length", "cancelled")
        output = items(self._turn, reply.text, reply.tool_calls, "incomplete" if cut else "completed")
        return ResponseObject(
            **self._head,
            status="incomplete" if cut else "completed",
            incomplete_details=Incomplete() if cut else None,
            output=output,
            usage=ResponseUsage.of(reply.usage),
            agentmem=Extension.of(reply, self._scope, self._session, self._body.agentmem),
        )

    async def events(self, serving: Serving) -> AsyncIterator[str]:
        """Piece by piece, as server-sent events."""
        tell = _Teller()
        begun = ResponseObject(**self._head, status="in_progress")
        yield tell("response.created", response=begun)
        yield tell("response.in_progress", response=begun)
        at = {"item_id": message_id(self._turn), "output_index": 0, "content_index": 0}
        opened = False
        try:
            async for piece in serving.pieces():
                if not opened:
                    opened = True
                    for line in self._open(tell, at):
                        yield line
                yield tell("response.output_text.delta", **at, delta=piece, logprobs=[])
            reply = await serving.reply()
        except (AgentMemError, Failure, RuntimeError) as error:  # too late for a status
            note(error)
            body = Failure.of(error).body["error"]
            failed = begun.model_copy(
                update={"status": "failed", "error": {"code": "server_error", "message": body["message"]}}
            )
            yield tell("response.failed", response=failed)
            return
        response = self.whole(reply)
        for index, item in enumerate(response.output):
            lines = self._close(tell, at, item, opened) if isinstance(item, OutputMessage) else _call(tell, index, item)
            for line in lines:
                yield line
        yield tell(f"response.{response.status}", response=response)

    def _open(self, tell: _Teller, at: dict[str, Any]) -> Iterator[str]:
        yield tell("response.output_item.added", output_index=0, item=_said(self._turn, "", "in_progress"))
        yield tell("response.content_part.added", **at, part=OutputText(text=""))

    def _close(self, tell: _Teller, at: dict[str, Any], item: OutputMessage, opened: bool) -> Iterator[str]:
        if not opened:  # an answer without a word
            yield from self._open(tell, at)
        part = item.content[0]
        yield tell("response.output_text.done", **at, text=part.text, logprobs=[])
        yield tell("response.content_part.done", **at, part=part)
        yield tell("response.output_item.done", output_index=0, item=item)


def message_id(turn: str) -> str:
    """Id of the item with the words of an answer."""
    return f"msg_{turn}"


def items(turn: str, text: str, calls: Sequence[ToolCall], status: str) -> list[OutputMessage | OutputCall]:
    """What the answer with this turn's id is made of. Ids follow from the turn, so they are the same later."""
    said: list[OutputMessage | OutputCall] = [_said(turn, text, status)] if text or not calls else []
    return said + [_called(turn, number, CallItem.of(call)) for number, call in enumerate(calls)]


def _said(turn: str, text: str, status: str) -> OutputMessage:
    content = [OutputText(text=text)] if status != "in_progress" else []
    return OutputMessage.model_validate({"id": message_id(turn), "status": status, "content": content})


def _called(turn: str, number: int, call: CallItem) -> OutputCall:
    name, arguments = call.function.name, call.function.arguments
    return OutputCall(id=f"fc_{turn}{number}", call_id=f"call_{turn}{number}", name=name, arguments=arguments)


class _Teller:
    """Writes events with their running number."""

    def __init__(self) -> None:
        self._number = itertools.count()

    def __call__(self, kind: str, **fields: Any) -> str:
        plain = {k: v.model_dump(mode="json") if isinstance(v, BaseModel) else v for k, v in fields.items()}
        return f"event: {kind}\n" + event({"type": kind, "sequence_number": next(self._number), **plain})


def _call(tell: _Teller, index: int, item: OutputCall) -> Iterator[str]:
    begun = item.model_copy(update={"arguments": "", "status": "in_progress"})
    where = {"item_id": item.id, "output_index": index}
    yield tell("response.output_item.added", output_index=index, item=begun)
    yield tell("response.function_call_arguments.delta", **where, delta=item.arguments)
    yield tell("response.function_call_arguments.done", **where, name=item.name, arguments=item.arguments)
    yield tell("response.output_item.done", output_index=index, item=item)


def _split(body: ResponseRequest) -> tuple[list[Message], list[Message]]:
    """The system messages (instructions first) and the others."""
    messages = to_messages(to_chat(body.input))
    system = [Message(role=Role.SYSTEM, content=body.instructions)] if body.instructions else []
    system += [message for message in messages if message.role is Role.SYSTEM]
    return system, [message for message in messages if message.role is not Role.SYSTEM]


def _find(host: Host, scope: Scope, id: str) -> tuple[str, str]:
    """Session and turn of an earlier answer; of the turn that it answered, if it was without a word.

    Raises:
        Failure: 404, there is none in this scope, or its words are no longer remembered.
    """
    if found := RESPONSE_ID.fullmatch(id):
        memories = host.llm.memories(user=scope.user, agent=scope.agent)
        for turn in (found[2], found[1]):
            for memory in memories.list(limit=1, turns=[turn]):
                if memory.scope.session is not None:
                    return memory.scope.session, turn
    raise Failure(404, "there is no such previous response", code="not_found", param="previous_response_id")
