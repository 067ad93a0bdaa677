"""A dialogue with tools, and what its turns are made of."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from agentmem.records import Message, Role, ToolCall
from agentmem.training.dialogues import Chunk
from agentmem.training.requests import Request

_JOINTS = (" and then ", ", then ", " and ", ". Then ", ". After that, ", ". Also, ", ". ")


@dataclass
class Errand:
    """A dialogue with tools: ``tools`` of OpenAI's form in the order of their names, memories, and turns."""

    tools: list[dict[str, Any]] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)
    turns: list[Message] = field(default_factory=list)


def user(text: str) -> Message:
    """A user's turn."""
    return Message(role=Role.USER, content=text)


def reply(text: str) -> Message:
    """An assistant's words."""
    return Message(role=Role.ASSISTANT, content=text)


def call(name: str, arguments: dict[str, Any]) -> Message:
    """An assistant's call of one tool."""
    return Message(role=Role.ASSISTANT, content="", tool_calls=(ToolCall(name=name, arguments=arguments),))


def result(text: str) -> Message:
    """What a tool returned."""
    return Message(role=Role.TOOL, content=text)


def told(results: list[str]) -> str:
    """The answer that says what the tools returned, word for word and to its end, so that nothing has to be decided."""
    return f"The result is: {results[0]}" if len(results) == 1 else "The results are: " + "; ".join(results)


def joined(rng: random.Random, requests: list[Request]) -> str:
    """All that is asked for in one turn."""
    said = requests[0].said
    for more in requests[1:]:
        joint = rng.choice(_JOINTS)
        second = more.said if joint == ". " else more.said[0].lower() + more.said[1:]
        said = said.rstrip(".?!") + joint + second
    return said
