"""The messages of a run as ``Conversation`` takes them: smolagents writes calls and what tools gave as words."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from typing import Any

from smolagents import ChatMessage
from smolagents.models import MessageRole

from agentmem import InvalidInput, Message, Role, ToolCall

TASK, CALLING, OBSERVED = "New task:\n", "Calling tools:\n", "Observation:\n"
"""What smolagents puts in front of a task, of calls and of what tools gave."""


def to_messages(messages: Sequence[ChatMessage | Mapping[str, Any]], stop: Sequence[str]) -> list[Message]:
    """The run so far. Calls are calls again, and belong to the words before them; code stands in these already.

    Raises:
        InvalidInput: something in a message that is no text.
    """
    found: list[Message] = []
    for message in messages:
        role, content = (
            (message["role"], message.get("content"))
            if isinstance(message, Mapping)
            else (message.role, message.content)
        )
        text = _text(content)
        if role == MessageRole.TOOL_CALL:
            said = found.pop().content if found and found[-1].role is Role.ASSISTANT else ""
            calls = _calls(text)
            found.append(Message(role=Role.ASSISTANT, content=said if calls or said else text, tool_calls=calls))
        elif role == MessageRole.TOOL_RESPONSE:
            found.append(Message(role=Role.TOOL, content=text.removeprefix(OBSERVED)))
        elif role == MessageRole.ASSISTANT:
            for one in stop:  # a CodeAgent puts the stop that ended the answer behind it again
                text = text.removesuffix(one)
            found.append(Message(role=Role.ASSISTANT, content=text))
        else:
            found.append(Message(role=Role(str(getattr(role, "value", role))), content=text.removeprefix(TASK)))
    return found


def _text(content: object) -> str:
    parts = [{"type": "text", "text": content or ""}] if isinstance(content, str | None) else content
    if not isinstance(parts, list) or not all(part.get("type") == "text" for part in parts):
        raise InvalidInput("a message has a part that is no text; the model reads text only")
    return "\n".join(part["text"] for part in parts)


def _calls(text: str) -> tuple[ToolCall, ...]:
    """The calls of ``Calling tools:``; none where the arguments are no object, as those of code are not."""
    try:
        calls = ast.literal_eval(text.removeprefix(CALLING))
        return tuple(ToolCall.model_validate(call) for call in calls if isinstance(call["function"]["arguments"], dict))
    except (ValueError, SyntaxError, TypeError, KeyError, RecursionError):
        return ()
