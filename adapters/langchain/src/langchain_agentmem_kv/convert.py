"""LangChain's messages, tools and choices as ``Conversation`` takes them, and replies as LangChain takes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages import AIMessageChunk, BaseMessage, convert_to_openai_messages
from langchain_core.messages.ai import UsageMetadata
from langchain_core.messages.tool import tool_call_chunk

from agentmem import InvalidInput, Message, Reply, Role

_PASSED_OVER = ("tool_use", "tool_call", "thinking", "reasoning")
"""Parts that other models leave in a dialogue: calls, which stand in ``tool_calls`` as well, and thoughts."""


def to_messages(messages: Sequence[BaseMessage]) -> list[Message]:
    """The dialogue: system messages as one, in front; the others as they are, without what is no text.

    Raises:
        InvalidInput: something in a message that is no text.
    """
    system: list[str] = []
    said: list[Message] = []
    for message in convert_to_openai_messages(messages):
        text = _text(message.get("content"))
        if message["role"] in ("system", "developer"):
            system.append(text)
        else:
            said.append(Message.model_validate(message | {"content": text}))
    head = "\n\n".join(text for text in system if text.strip())
    return [*([Message(role=Role.SYSTEM, content=head)] if head else []), *said]


def _text(content: str | list[dict[str, Any]] | None) -> str:
    parts = [{"type": "text", "text": content or ""}] if content is None or isinstance(content, str) else content
    for part in parts:
        if part.get("type") not in ("text", *_PASSED_OVER):
            raise InvalidInput(f"a message has a part of type {part.get('type')!r}; the model reads text only")
    return "\n".join(part["text"] for part in parts if part["type"] == "text")


def to_choice(tools: Sequence[Mapping[str, Any]], choice: object) -> dict[str, Any]:
    """The tools that are offered, and whether one has to be called."""
    if not tools or choice == "none":
        return {}
    if isinstance(choice, str) and choice not in ("any", "auto", "required"):
        choice = {"type": "function", "function": {"name": choice}}
    named = {True: "required", "any": "required", False: "auto", None: "auto"}
    return {"tools": tools, "tool_choice": choice if isinstance(choice, Mapping) else named.get(choice, choice)}


def to_end(reply: Reply, model: str, text: str = "") -> AIMessageChunk:
    """What is known at the end of a reply (calls, usage, which memories were read), behind a text."""
    prompt = reply.usage.prompt_tokens + reply.usage.memory_tokens
    read = [{"id": one.memory.id, "text": one.memory.text, "attention": one.attention} for one in reply.memories]
    return AIMessageChunk(
        content=text,
        tool_call_chunks=[
            tool_call_chunk(name=call.name, args=json.dumps(call.arguments), id=call.id, index=at)
            for at, call in enumerate(reply.tool_calls)
        ],
        usage_metadata=UsageMetadata(
            input_tokens=prompt,
            output_tokens=reply.usage.completion_tokens,
            total_tokens=prompt + reply.usage.completion_tokens,
            input_token_details={"cache_read": reply.usage.memory_tokens},
        ),
        response_metadata={
            "finish_reason": reply.finish_reason,
            "model_name": model,
            "model_provider": "agentmem",
            "memories": read,
            "notes": list(reply.notes),
        },
        chunk_position="last",
    )
