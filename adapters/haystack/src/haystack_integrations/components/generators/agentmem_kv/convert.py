"""Haystack's messages, tools and options as ``Conversation`` takes them, and replies as Haystack takes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from haystack.dataclasses import ChatMessage, ComponentInfo, StreamingChunk, ToolCall
from haystack.dataclasses.streaming_chunk import FinishReason, ToolCallDelta
from haystack.tools import ToolsType, flatten_tools_or_toolsets
from pydantic import BaseModel

from agentmem import InvalidInput, Reply, session_of


def to_messages(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """The dialogue in OpenAI's form. Raises ValueError for what that cannot say."""
    return [message.to_openai_dict_format(require_tool_call_ids=False) for message in messages]


def to_tools(tools: ToolsType | None) -> list[dict[str, Any]]:
    """Tools, and those of toolsets, in OpenAI's form."""
    return [{"type": "function", "function": tool.tool_spec} for tool in flatten_tools_or_toolsets(tools)]


def to_options(
    *,
    max_tokens: int | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int | None = None,
    stop: str | Sequence[str] | None = None,
    tool_choice: str | Mapping[str, Any] = "auto",
    response_format: type[BaseModel] | Mapping[str, Any] | None = None,
    remember: bool = True,
) -> dict[str, Any]:
    """``generation_kwargs`` as options of ``Conversation.chat``. Raises TypeError for one that is not known."""
    if isinstance(response_format, type):
        form = {"name": response_format.__name__, "schema": response_format.model_json_schema()}
        response_format = {"type": "json_schema", "json_schema": form}
    return {
        "max_new_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k_tokens": top_k,
        "seed": seed,
        "stop": stop or (),
        "tool_choice": tool_choice,
        "response_format": response_format,
        "remember": remember,
    }


def scope_of(options: dict[str, Any], messages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Whose dialogue it is, taken out of the options. Raises InvalidInput without a user."""
    user, agent, session = (options.pop(name, None) for name in ("user_id", "agent_id", "session_id"))
    if not user:
        raise InvalidInput("whose memories? Give user_id to the component, or to the run in its generation_kwargs")
    return {"user": user, "agent": agent or "", "session": session or session_of(messages)}


def to_chunk(piece: str, at: int, source: ComponentInfo) -> StreamingChunk:
    """A piece of the answer."""
    return StreamingChunk(content=piece, index=0, start=at == 0, component_info=source)


def to_end(reply: Reply, source: ComponentInfo) -> StreamingChunk:
    """What comes behind the last piece: the calls, and why the answer ended."""
    calls = [
        ToolCallDelta(index=at, id=call.id, tool_name=call.name, arguments=json.dumps(call.arguments))
        for at, call in enumerate(reply.tool_calls)
    ]
    known = reply.finish_reason in get_args(FinishReason)
    return StreamingChunk(
        content="",
        index=1,
        start=bool(calls),
        tool_calls=calls or None,
        finish_reason=reply.finish_reason if known else "stop",  # type: ignore[arg-type]
        component_info=source,
    )


def to_answer(reply: Reply, model: str) -> ChatMessage:
    """The answer, with what was read and used for it."""
    prompt = reply.usage.prompt_tokens + reply.usage.memory_tokens
    calls = [ToolCall(id=call.id, tool_name=call.name, arguments=call.arguments) for call in reply.tool_calls]
    return ChatMessage.from_assistant(
        reply.text,
        tool_calls=calls or None,
        meta={
            "model": model,
            "index": 0,
            "finish_reason": reply.finish_reason,
            "usage": {
                "prompt_tokens": prompt,
                "completion_tokens": reply.usage.completion_tokens,
                "total_tokens": prompt + reply.usage.completion_tokens,
                "prompt_tokens_details": {"cached_tokens": reply.usage.memory_tokens},
            },
            "memories": [
                {"id": read.memory.id, "text": read.memory.text, "attention": read.attention} for read in reply.memories
            ],
            "notes": list(reply.notes),
        },
    )
