"""``/v1/responses`` on the wire: what comes in and goes out, in OpenAI's form with our extension."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field

from agentmem.records import Usage
from agentmem.server.dialogue import (
    CallItem,
    ChatMessage,
    Extension,
    Form,
    FunctionCall,
    FunctionTool,
    Temperature,
    TextPart,
    Tokens,
    Tool,
    ToolChoice,
    TopP,
    Wanted,
)
from agentmem.server.failures import Failure

Status = Literal["in_progress", "completed", "incomplete", "failed"]


class InputItem(BaseModel):
    """One item of the input: a message, a call of a tool, or what a tool gave. Reasoning is passed over."""

    type: Literal["message", "function_call", "function_call_output", "reasoning"] = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: str | list[TextPart] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[TextPart] | None = None


class ResponseTool(BaseModel):
    """A function that the model may call."""

    type: Literal["function"]
    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @property
    def tool(self) -> Tool:
        """As chat completions name it."""
        function = FunctionTool(name=self.name, description=self.description, parameters=self.parameters)
        return Tool(type="function", function=function)


class TextFormat(Form):
    """The form of the answer."""

    name: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None

    @property
    def chat_form(self) -> dict[str, Any]:
        """As chat completions say it."""
        named = {"name": self.name or "answer", "schema": self.schema_ or {}}
        return {"type": self.type, **({"json_schema": named} if self.type == "json_schema" else {})}


class TextForm(BaseModel):
    """How the answer is written."""

    format: TextFormat = Field(default_factory=lambda: TextFormat(type="text", schema=None))


class ResponseRequest(BaseModel):
    """What is new in a dialogue. Fields that are not named here are ignored."""

    model: str
    input: str | list[InputItem] = Field(min_length=1)
    previous_response_id: str | None = None
    """The answer that the input follows: nothing of the dialogue before it has to be sent again."""
    instructions: str | None = None
    store: bool | None = None
    """False: answer with the memories there are, and remember nothing of this turn."""
    stream: bool | None = None
    max_output_tokens: Tokens | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    tools: list[ResponseTool] | None = None
    tool_choice: ToolChoice | None = None
    text: TextForm | None = None
    user: str | None = None
    """Whose memory is read and written."""
    metadata: dict[str, str] | None = None
    parallel_tool_calls: bool | None = None
    background: Literal[False] | None = None
    conversation: None = None
    agentmem: Wanted | None = None
    """Not of OpenAI's: what else the answer's field of this name shall hold."""


class OutputText(BaseModel):
    """Text of a message."""

    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[Any] = []
    logprobs: list[Any] = []


class OutputMessage(BaseModel):
    """The assistant's message."""

    type: Literal["message"] = "message"
    id: str
    role: Literal["assistant"] = "assistant"
    status: Literal["in_progress", "completed", "incomplete"]
    content: list[OutputText]


class OutputCall(BaseModel):
    """A tool that the model calls."""

    type: Literal["function_call"] = "function_call"
    id: str
    call_id: str
    name: str
    arguments: str
    status: Literal["in_progress", "completed"] = "completed"


class InputDetails(BaseModel):
    """Of the input's tokens, those that were read from memory."""

    cached_tokens: int
    cache_write_tokens: int = 0


class OutputDetails(BaseModel):
    """There is no hidden reasoning."""

    reasoning_tokens: int = 0


class ResponseUsage(BaseModel):
    """Tokens of one answer."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails = OutputDetails()
    total_tokens: int

    @classmethod
    def of(cls, usage: Usage) -> ResponseUsage:
        """Our counts in OpenAI's form."""
        read = usage.prompt_tokens + usage.memory_tokens
        return cls(
            input_tokens=read,
            input_tokens_details=InputDetails(cached_tokens=usage.memory_tokens),
            output_tokens=usage.completion_tokens,
            total_tokens=read + usage.completion_tokens,
        )


class Incomplete(BaseModel):
    """Why an answer ends early."""

    reason: Literal["max_output_tokens"] = "max_output_tokens"


class ResponseObject(BaseModel):
    """An answer, whole or on its way."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Status
    model: str
    output: list[OutputMessage | OutputCall] = []
    usage: ResponseUsage | None = None
    error: dict[str, Any] | None = None
    incomplete_details: Incomplete | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    parallel_tool_calls: bool = True
    tool_choice: ToolChoice = "auto"
    tools: list[dict[str, Any]] = []
    metadata: dict[str, str] = {}
    temperature: float | None = None
    top_p: float | None = None
    max_output_tokens: int | None = None
    store: bool = True
    text: dict[str, Any] = {"format": {"type": "text"}}
    user: str | None = None
    agentmem: Extension | None = None


def to_chat(items: str | Sequence[InputItem]) -> list[ChatMessage]:
    """Input items as chat messages; what an assistant says and calls in a row is one message.

    Raises:
        Failure: an item that lacks what its type needs.
    """
    if isinstance(items, str):
        return [ChatMessage(role="user", content=items)]
    out: list[ChatMessage] = []
    for item in items:
        if item.type == "function_call":
            if not item.name:
                raise Failure(400, "a function_call needs a name", code="invalid_value", param="input")
            call = CallItem(function=FunctionCall(name=item.name, arguments=item.arguments or "{}"))
            if item.call_id:
                call = call.model_copy(update={"id": item.call_id})
            if not out or out[-1].role != "assistant":
                out.append(ChatMessage(role="assistant"))
            out[-1] = out[-1].model_copy(update={"tool_calls": [*(out[-1].tool_calls or []), call]})
        elif item.type == "function_call_output":
            out.append(ChatMessage(role="tool", content=item.output, tool_call_id=item.call_id))
        elif item.type == "message":
            if item.role is None:
                raise Failure(400, "a message needs a role", code="invalid_value", param="input")
            out.append(ChatMessage(role=item.role, content=item.content))
    return out
