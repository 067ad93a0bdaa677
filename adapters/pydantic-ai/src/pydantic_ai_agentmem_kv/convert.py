"""Pydantic AI's messages, tools and settings as ``Conversation`` takes them, and replies as Pydantic AI takes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pydantic_ai.exceptions import UserError
from pydantic_ai.messages import (
    CachePoint,
    FinishReason,
    ModelMessage,
    ModelRequestPart,
    ModelResponse,
    SystemPromptPart,
    TextContent,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.settings import ModelSettings, ToolOrOutput
from pydantic_ai.tools import ToolDefinition
from pydantic_ai.usage import RequestUsage

from agentmem import Message, Reply, Role, ToolCall

FINISH: dict[str, FinishReason] = {"length": "length", "tool_calls": "tool_call", "broken_call": "error"}


def to_messages(messages: Sequence[ModelMessage], instructions: Sequence[str]) -> list[Message]:
    """The dialogue, and the instructions behind its system prompts.

    Raises:
        UserError: something that is no text, or that ``Model.prepare_messages`` has not translated.
    """
    said: list[Message] = []
    for message in messages:
        said += [_answered(message)] if isinstance(message, ModelResponse) else map(_asked, message.parts)
    return [*said, *(Message(role=Role.SYSTEM, content=text) for text in instructions)]


def _asked(part: ModelRequestPart) -> Message:
    if isinstance(part, SystemPromptPart):
        return Message(role=Role.SYSTEM, content=part.content)
    if isinstance(part, UserPromptPart):
        return Message(role=Role.USER, content=text_of(part))
    if isinstance(part, ToolReturnPart):
        text = part.model_response_str()
        return Message(role=Role.TOOL, content=text, tool_call_id=part.tool_call_id, name=part.tool_name)
    raise UserError(f"{type(part).__name__} is nothing that the model reads; call Model.prepare_messages first")


def text_of(part: UserPromptPart) -> str:
    """What a user said. Raises UserError for what is no text."""
    texts: list[str] = []
    for item in [part.content] if isinstance(part.content, str) else part.content:
        if isinstance(item, str | TextContent):
            texts.append(item if isinstance(item, str) else item.content)
        elif not isinstance(item, CachePoint):
            raise UserError(f"a prompt has a part of type {type(item).__name__}; the model reads text only")
    return "\n".join(texts)


def _answered(message: ModelResponse) -> Message:
    """An answer: its words and its calls, without the thoughts and the provider's own tools of other models."""
    calls = [part for part in message.parts if isinstance(part, ToolCallPart)]
    return Message(
        role=Role.ASSISTANT,
        content="\n\n".join(part.content for part in message.parts if isinstance(part, TextPart)),
        tool_calls=tuple(ToolCall(id=c.tool_call_id, name=c.tool_name, arguments=c.args_as_dict()) for c in calls),
    )


def conversation_of(messages: Sequence[ModelMessage]) -> str | None:
    """The id of the conversation that the messages are of; outside of agents there is none."""
    return next(
        (message.conversation_id for message in reversed(messages) if message.conversation_id is not None), None
    )


def to_options(settings: ModelSettings, parameters: ModelRequestParameters) -> dict[str, Any]:
    """Settings, tools and the form of the output, as options of ``Conversation.chat``."""
    tools, required = _offered(settings, parameters)
    form: dict[str, Any] | None = None
    if parameters.output_mode == "native" and (wanted := parameters.output_object):
        form = {"name": wanted.name or "output", "schema": wanted.json_schema}
        form = {"type": "json_schema", "json_schema": form}
    elif parameters.output_mode == "prompted":
        form = {"type": "json_object"}
    return {
        "tools": [
            {"type": "function", "function": {"name": tool.name, "parameters": tool.parameters_json_schema}}
            | ({"description": tool.description} if tool.description else {})
            for tool in tools
        ],
        "tool_choice": "required" if required else "auto",
        "response_format": form,
        "max_new_tokens": settings.get("max_tokens"),
        "temperature": settings.get("temperature", 0.0),
        "top_p": settings.get("top_p", 1.0),
        "top_k_tokens": settings.get("top_k", 0),
        "seed": settings.get("seed"),
        "stop": settings.get("stop_sequences", ()),
    }


def _offered(settings: ModelSettings, parameters: ModelRequestParameters) -> tuple[list[ToolDefinition], bool]:
    """The tools that may be called, those for the output among them; and whether one has to be."""
    choice = settings.get("tool_choice")
    there = parameters.declared_tool_defs
    names, required = set(there), not parameters.allow_text_output
    outputs = {tool.name for tool in parameters.output_tools}
    if choice == "required":
        names, required = names - outputs, True
    elif isinstance(choice, ToolOrOutput):
        names = {*choice.function_tools, *outputs}
    elif choice == "none" or choice == []:
        names = outputs
    elif isinstance(choice, list):
        names, required = set(choice), True
    tools = [tool for name, tool in there.items() if name in names]
    if required and not tools:
        raise UserError(
            f"tool_choice {choice!r} asks for a call, and none of the tools {sorted(there)} is one of those"
        )
    return tools, required


def to_parts(reply: Reply) -> Iterator[TextPart | ToolCallPart]:
    """What a reply says and calls."""
    if reply.text:
        yield TextPart(reply.text)
    for call in reply.tool_calls:
        yield ToolCallPart(call.name, call.arguments, tool_call_id=call.id)


def to_end(reply: Reply) -> dict[str, Any]:
    """What is known at the end of a reply, as fields of a response: usage, and which memories were read."""
    return {
        "usage": RequestUsage(
            input_tokens=reply.usage.prompt_tokens + reply.usage.memory_tokens,
            output_tokens=reply.usage.completion_tokens,
            cache_read_tokens=reply.usage.memory_tokens,
        ),
        "finish_reason": FINISH.get(reply.finish_reason, "stop"),
        "provider_details": {
            "finish_reason": reply.finish_reason,
            "memories": [
                {"id": read.memory.id, "text": read.memory.text, "attention": read.attention} for read in reply.memories
            ],
            "notes": list(reply.notes),
        },
    }
