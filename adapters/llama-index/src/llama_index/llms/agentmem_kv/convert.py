"""LlamaIndex's messages, tools and choices as ``Conversation`` takes them, and replies as LlamaIndex takes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, MessageRole, TextBlock, ToolCallBlock
from llama_index.core.llms.llm import ToolSelection

from agentmem import InvalidInput, Reply

_ROLES = {
    MessageRole.DEVELOPER: "system",
    MessageRole.FUNCTION: "tool",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
}
_PASSED_OVER = ("tool_call", "thinking", "cache")
"""Blocks that are no words of the dialogue; calls go into ``tool_calls``."""


def to_messages(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """The dialogue in OpenAI's form.

    Raises:
        InvalidInput: something in a message that is no text.
    """
    return [_message(message) for message in messages]


def _message(message: ChatMessage) -> dict[str, Any]:
    for block in message.blocks:
        if not isinstance(block, TextBlock) and block.block_type not in _PASSED_OVER:
            raise InvalidInput(f"a message has a block of type {block.block_type!r}; the model reads text only")
    calls = [
        {"id": block.tool_call_id, "name": block.tool_name, "arguments": block.tool_kwargs}
        for block in message.blocks
        if isinstance(block, ToolCallBlock)
    ]
    role = _ROLES.get(message.role, message.role.value)
    plain = {"role": role, "content": message.content or "", "tool_calls": calls}
    return plain | ({"tool_call_id": message.additional_kwargs.get("tool_call_id")} if role == "tool" else {})


def to_choice(tool_choice: str | Mapping[str, Any] | None, required: bool = False) -> str | Mapping[str, Any]:
    """Which tool to call: LlamaIndex says it by name, with "any", or with a flag."""
    if tool_choice is None:
        return "required" if required else "auto"
    if tool_choice == "any":
        return "required"
    if isinstance(tool_choice, str) and tool_choice not in ("auto", "none", "required"):
        return {"type": "function", "function": {"name": tool_choice}}
    return tool_choice


def to_form(schema: Mapping[str, Any]) -> dict[str, Any]:
    """An answer that follows a JSON schema."""
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


def to_piece(said: str, piece: str) -> ChatResponse:
    """A reply that is not finished: what was said so far, and the newest piece of it."""
    return ChatResponse(message=ChatMessage(said, role=MessageRole.ASSISTANT), delta=piece)


def to_response(reply: Reply, delta: str | None = None) -> ChatResponse:
    """A finished reply: its words, its calls, and which memories were read."""
    calls = [
        ToolCallBlock(tool_call_id=call.id, tool_name=call.name, tool_kwargs=call.arguments)
        for call in reply.tool_calls
    ]
    usage = reply.usage.model_dump()
    read = [{"id": one.memory.id, "text": one.memory.text, "attention": one.attention} for one in reply.memories]
    return ChatResponse(
        message=ChatMessage(
            role=MessageRole.ASSISTANT,
            blocks=[*([TextBlock(text=reply.text)] if reply.text or not calls else []), *calls],
        ),
        delta=delta,
        raw={"usage": usage, "finish_reason": reply.finish_reason, "memories": read, "notes": list(reply.notes)},
    )


def to_selection(call: ToolCallBlock) -> ToolSelection:
    """A call as LlamaIndex runs it. Raises InvalidInput for arguments that are text, and no JSON object."""
    given = call.tool_kwargs
    try:
        arguments = json.loads(given or "{}") if isinstance(given, str) else given
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):
        raise InvalidInput(f"the arguments of {call.tool_name!r} must be a JSON object, not {given!r:.80}")
    return ToolSelection(tool_id=call.tool_call_id or "", tool_name=call.tool_name, tool_kwargs=arguments)
