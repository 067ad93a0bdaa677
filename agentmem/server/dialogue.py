"""Messages and options as OpenAI's clients send them, as ``Conversation`` takes them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import uuid4

from pydantic import BaseModel, Field

from agentmem.records import Message, Reply, Role, Scope, ToolCall
from agentmem.server.failures import Failure
from agentmem.tools import call_text

NOTHING = "(nothing)"
"""What stands for a tool's result without any text."""

Temperature = Annotated[float, Field(ge=0, le=2)]
TopP = Annotated[float, Field(gt=0, le=1)]
Tokens = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]


class TextPart(BaseModel):
    """A piece of a message. Other kinds (images, sound) are refused: the model reads text."""

    type: Literal["text", "input_text", "output_text"]
    text: str


class FunctionCall(BaseModel):
    """The function that is called, and its arguments as JSON text."""

    name: str
    arguments: str


class CallItem(BaseModel):
    """One call of a tool."""

    id: str = Field(default_factory=lambda: f"call_{uuid4().hex[:24]}")
    type: Literal["function"] = "function"
    function: FunctionCall

    @classmethod
    def of(cls, call: ToolCall) -> CallItem:
        """A call of the model, with an id of its own."""
        return cls(function=FunctionCall(name=call.name, arguments=json.dumps(call.arguments, ensure_ascii=False)))


class ChatMessage(BaseModel):
    """One message of a dialogue."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    tool_calls: list[CallItem] | None = None
    tool_call_id: str | None = None
    name: str | None = None


class FunctionTool(BaseModel):
    """A function that the model may call."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(BaseModel):
    """A tool that the model may call."""

    type: Literal["function"]
    function: FunctionTool


class MemoryUsed(BaseModel):
    """One memory that a reply attended to."""

    id: str
    text: str
    role: Role
    created_at: datetime
    score: float
    """Recall score."""
    attention: float
    """Attention share: the part of the softmax mass that it received, mean over layers, heads and tokens."""
    rebuilt: bool
    """Its attention KV had to be encoded anew from its text."""


class Wanted(BaseModel):
    """What a client wants to know of an answer besides its text."""

    tokens: bool = False
    """Which memory each token attended to."""


class TokenUsed(BaseModel):
    """What one token of an answer attended to."""

    start: int
    """Its first character (Unicode code point) in the answer's text."""
    end: int
    attention: dict[int, float]
    """Attention share by place in ``memories``. Together at most 1: the rest went to the dialogue itself."""


class Extension(BaseModel):
    """What this server adds to an answer: whose memory was used, and how."""

    user: str
    agent: str
    session: str
    memories: list[MemoryUsed]
    notes: list[str]
    tokens: list[TokenUsed] | None = None
    """Token by token, where it was asked for."""

    @classmethod
    def of(cls, reply: Reply, scope: Scope, session: str, wanted: Wanted | None = None) -> Extension:
        """What was read for a reply."""
        read = [
            MemoryUsed(
                id=one.memory.id,
                text=one.memory.text,
                role=one.memory.role,
                created_at=one.memory.created_at,
                score=one.score,
                attention=one.attention,
                rebuilt=one.rebuilt,
            )
            for one in reply.memories
        ]
        tokens = _tokens(reply) if wanted is not None and wanted.tokens else None
        notes = list(reply.notes)
        return cls(user=scope.user, agent=scope.agent, session=session, memories=read, notes=notes, tokens=tokens)


def _tokens(reply: Reply) -> list[TokenUsed]:
    places = {one.memory.id: place for place, one in enumerate(reply.memories)}
    return [
        TokenUsed(
            start=token.start,
            end=token.end,
            attention={places[id]: round(share, 6) for id, share in token.attention.items()},
        )
        for token in reply.tokens
    ]


def plain(content: str | Sequence[TextPart] | None) -> str:
    """The text of a message."""
    if content is None or isinstance(content, str):
        return content or ""
    return "\n".join(part.text for part in content)


def calls_of(items: Sequence[CallItem] | None) -> list[ToolCall]:
    """Calls that a client sends back.

    Raises:
        Failure: arguments that are no JSON object.
    """
    calls = []
    for item in items or ():
        try:
            arguments = json.loads(item.function.arguments or "{}")
        except ValueError:
            arguments = None
        if not isinstance(arguments, dict):
            raise Failure(400, "the arguments of a tool call must be a JSON object", code="invalid_value")
        calls.append(ToolCall(name=item.function.name, arguments=arguments))
    return calls


def to_messages(messages: Sequence[ChatMessage]) -> list[Message]:
    """The dialogue: one system message at most, in front; assistant's turns without any words are left out.

    Raises:
        Failure: no message to answer.
    """
    system: list[str] = []
    said: list[Message] = []
    for message in messages:
        text = plain(message.content)
        if message.role in ("system", "developer"):
            system.append(text)
        elif message.role == "assistant":
            content = call_text(text, calls_of(message.tool_calls))
            said += [Message(role=Role.ASSISTANT, content=content)] if content.strip() else []
        elif message.role == "tool":
            said.append(Message(role=Role.TOOL, content=text if text.strip() else NOTHING))
        else:
            said.append(Message(role=Role.USER, content=text))
    if not said:
        raise Failure(400, "there is no message to answer", code="invalid_value", param="messages")
    head = "\n\n".join(text for text in system if text.strip())
    return [*([Message(role=Role.SYSTEM, content=head)] if head else []), *said]


def session_of(messages: Sequence[Message]) -> str:
    """A name for the dialogue that a client sends whole each time: made from its first words, which stay the same."""
    first = next(message for message in messages if message.role is not Role.SYSTEM)
    return "chat-" + hashlib.sha256(f"{first.role}\x00{first.content}".encode()).hexdigest()[:24]


class NamedFunction(BaseModel):
    """The function to call."""

    name: str


class NamedChoice(BaseModel):
    """Call this one: chat completions name it within ``function``, responses beside it."""

    type: Literal["function"]
    function: NamedFunction | None = None
    name: str | None = None


ToolChoice = Literal["auto", "none", "required"] | NamedChoice


def choose(tools: Sequence[Tool] | None, choice: ToolChoice | None) -> dict[str, Any]:
    """The tools that are offered, and whether one has to be called, as ``Conversation`` takes them."""
    if choice == "none" or not tools:
        if choice not in (None, "auto", "none"):
            raise Failure(
                400, "tool_choice names a tool, and there are none", code="invalid_value", param="tool_choice"
            )
        return {}
    offered = [tool.model_dump(exclude_none=True) for tool in tools]
    if isinstance(choice, NamedChoice):
        name = choice.function.name if choice.function is not None else choice.name
        if name not in {tool.function.name for tool in tools}:
            raise Failure(400, "tool_choice names no tool of this request", code="invalid_value", param="tool_choice")
        return {"tools": offered, "tool_choice": name}
    return {"tools": offered, "tool_choice": choice or "auto"}


class Form(BaseModel):
    """The form of an answer: text, a JSON object, or JSON that follows a schema."""

    type: Literal["text", "json_object", "json_schema"]

    def follow(self, schema: dict[str, Any] | None) -> dict[str, Any] | None:
        """The schema to follow; None for text."""
        if self.type == "json_schema":
            return {} if schema is None else schema
        return {"type": "object"} if self.type == "json_object" else None
