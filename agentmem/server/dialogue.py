"""Messages and options as OpenAI's clients send them, as ``Conversation`` takes them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import uuid4

from pydantic import BaseModel, Field, ValidationError

from agentmem.records import Message, Reply, Role, Scope, ToolCall
from agentmem.server.failures import Failure

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
        """A call of the model."""
        return cls.model_validate(call.openai())


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


def to_messages(messages: Sequence[ChatMessage]) -> list[Message]:
    """The dialogue.

    Raises:
        Failure: a message that says nothing a model could read, or none to answer.
    """
    try:
        said = [Message.model_validate(message.model_dump(exclude_none=True)) for message in messages]
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_input=False)[0]["msg"]
        raise Failure(400, wrong, code="invalid_value", param="messages") from None
    if all(message.role is Role.SYSTEM for message in said):
        raise Failure(400, "there is no message to answer", code="invalid_value", param="messages")
    return said


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
    if isinstance(choice, NamedChoice):
        name = choice.function.name if choice.function is not None else choice.name
        wanted: str | dict[str, Any] = {"type": "function", "function": {"name": name}}
    else:
        wanted = choice or "auto"
    return {"tools": [tool.model_dump(exclude_none=True) for tool in tools or ()], "tool_choice": wanted}


class Form(BaseModel):
    """The form of an answer: text, a JSON object, or JSON that follows a schema."""

    type: Literal["text", "json_object", "json_schema"]
