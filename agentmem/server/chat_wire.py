"""``/v1/chat/completions`` on the wire: what comes in and goes out, in OpenAI's form with our extension."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from agentmem.records import FinishReason, Usage
from agentmem.server.dialogue import (
    CallItem,
    ChatMessage,
    Extension,
    Form,
    Seed,
    Temperature,
    Tokens,
    Tool,
    ToolChoice,
    TopP,
    Wanted,
)

Finish = Literal["stop", "length", "tool_calls"]
FINISH: dict[FinishReason, Finish] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "cancelled": "length",  # read by nobody; what was kept of it ends like one that was too long
    "broken_call": "stop",  # OpenAI has no word for it; the notes say what is wrong
}


class StreamOptions(BaseModel):
    """How to stream."""

    include_usage: bool = False


class NamedSchema(BaseModel):
    """A JSON schema with a name."""

    name: str
    schema_: dict[str, Any] | None = Field(None, alias="schema")


class ResponseFormat(Form):
    """The form of the answer."""

    json_schema: NamedSchema | None = None


class ChatRequest(BaseModel):
    """A dialogue to answer. Fields that are not named here are ignored."""

    model: str
    messages: list[ChatMessage] = Field(min_length=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    temperature: Temperature | None = None
    """0 or nothing: always the likeliest token."""
    top_p: TopP | None = None
    stop: str | list[str] | None = None
    seed: Seed | None = None
    n: Literal[1] | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    response_format: ResponseFormat | None = None
    user: str | None = None
    """Whose memory is read and written."""
    logprobs: Literal[False] | None = None
    presence_penalty: Literal[0] | None = None
    frequency_penalty: Literal[0] | None = None
    agentmem: Wanted | None = None
    """Not of OpenAI's: what else the answer's field of this name shall hold."""


class CachedTokens(BaseModel):
    """Of the prompt's tokens, those that were read from memory and not processed again."""

    cached_tokens: int


class ChatUsage(BaseModel):
    """Tokens of one reply. The prompt's are those of the window and of the memories that were read."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens

    @classmethod
    def of(cls, usage: Usage) -> ChatUsage:
        """Our counts in OpenAI's form."""
        prompt = usage.prompt_tokens + usage.memory_tokens
        return cls(
            prompt_tokens=prompt,
            completion_tokens=usage.completion_tokens,
            total_tokens=prompt + usage.completion_tokens,
            prompt_tokens_details=CachedTokens(cached_tokens=usage.memory_tokens),
        )


class ChatReply(BaseModel):
    """The assistant's message."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    tool_calls: list[CallItem] | None = None


class Choice(BaseModel):
    """The one choice."""

    index: int = 0
    message: ChatReply
    logprobs: None = None
    finish_reason: Finish


class ChatCompletion(BaseModel):
    """A whole answer."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: ChatUsage
    agentmem: Extension


class ChunkCall(CallItem):
    """A call of a tool, in a stream."""

    index: int


class Delta(BaseModel):
    """What is new since the last chunk."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    tool_calls: list[ChunkCall] | None = None


class ChunkChoice(BaseModel):
    """The one choice of a chunk."""

    index: int = 0
    delta: Delta
    logprobs: None = None
    finish_reason: Finish | None = None


class ChatChunk(BaseModel):
    """A piece of an answer."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: ChatUsage | None = None
    agentmem: Extension | None = None
    """In the chunk that ends the answer."""
