"""The SDK's items and settings as ``Conversation`` takes them, and replies as the SDK takes them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, cast

from agents import ModelSettings
from agents.items import TResponseInputItem
from agents.models.chatcmpl_converter import Converter
from openai import Omit
from openai.types import CompletionUsage
from openai.types.chat import ChatCompletionChunk
from openai.types.completion_usage import PromptTokensDetails

from agentmem import AsyncReplyStream, Reply


def to_messages(instructions: str | None, input: str | list[TResponseInputItem]) -> list[dict[str, Any]]:
    """The dialogue so far in OpenAI's chat form, instructions in front."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": instructions}] if instructions else []
    for message in cast("list[dict[str, Any]]", Converter.items_to_messages(input)):
        refusal = message.pop("refusal", None)  # of another model
        messages.append(message | ({"content": refusal} if refusal and not message.get("content") else {}))
    return messages


def to_options(settings: ModelSettings) -> dict[str, Any]:
    """What of a run's settings a local model hears; ``extra_args`` are options of ``Conversation.stream``."""
    choice = Converter.convert_tool_choice(settings.tool_choice)
    options = {
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "max_new_tokens": settings.max_tokens,
        "tool_choice": None if isinstance(choice, Omit) else choice,
    }
    return {name: value for name, value in options.items() if value is not None} | (settings.extra_args or {})


async def to_chunks(pieces: AsyncReplyStream, model: str) -> AsyncIterator[ChatCompletionChunk]:
    """A reply as the chunks of OpenAI's chat form: its words, then its calls, the reason of its end, and its usage."""
    async for piece in pieces:
        yield to_chunk({"content": piece}, model)
    yield to_chunk({}, model, pieces.reply)


def to_chunk(delta: dict[str, Any], model: str, reply: Reply | None = None) -> ChatCompletionChunk:
    """One chunk; with the reply, the last one."""
    reason = None
    if reply is not None:
        delta["tool_calls"] = [call.openai() | {"index": at} for at, call in enumerate(reply.tool_calls)]
        reason = reply.finish_reason if reply.finish_reason in ("length", "tool_calls") else "stop"
    choices = [{"index": 0, "delta": delta, "finish_reason": reason}]
    chunk = {"id": "", "created": 0, "model": model, "object": "chat.completion.chunk", "choices": choices}
    return ChatCompletionChunk.model_validate(chunk | {"usage": reply and to_usage(reply)})


def to_usage(reply: Reply) -> CompletionUsage:
    """Tokens; those of memory are read like cached ones."""
    prompt, said = reply.usage.prompt_tokens + reply.usage.memory_tokens, reply.usage.completion_tokens
    return CompletionUsage(
        prompt_tokens=prompt,
        completion_tokens=said,
        total_tokens=prompt + said,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=reply.usage.memory_tokens),
    )
