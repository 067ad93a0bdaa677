"""A message list, checked. A list that goes on from the last one is looked at from where it differs."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from agentmem.errors import InvalidInput
from agentmem.records import Message, Role
from agentmem.text import check_characters, check_text

NOTHING = "(nothing)"
"""What stands for a tool's result without any text."""


@dataclass(frozen=True)
class Dialogue:
    """The messages of a list that are said, and its system texts."""

    said: list[Message] = field(default_factory=list)
    heads: list[tuple[int, str]] = field(default_factory=list)
    """System texts with their places in the list."""
    given: list[object] = field(default_factory=list)
    """The list as it was given, in copies: a dict may be changed by its owner."""
    ends: list[int] = field(default_factory=list)
    """By place in the list: how many messages are said up to and with it."""

    @property
    def system(self) -> Message | None:
        """The system texts joined, wherever they stand."""
        texts = [text for _, text in self.heads]
        return Message(role=Role.SYSTEM, content="\n\n".join(texts)) if texts else None


def check_dialogue(messages: object, before: Dialogue | None = None) -> Dialogue:
    """Check a list of messages, of which ``before`` knows the beginning.

    System texts are taken out. An assistant's turns without a word or a call are left out, a tool's result without a
    word is "(nothing)".

    Raises:
        InvalidInput: no text that can be stored, or no list of messages.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, (str, bytes, bytearray)) or not messages:
        raise InvalidInput(f"message must be a str or a non-empty list of messages, not {messages!r:.80}")
    wanted = list(messages)
    before = before or Dialogue()
    same = in_common(before.given, wanted)
    n_said = before.ends[same - 1] if same else 0
    dialogue = Dialogue(
        before.said[:n_said],
        [(at, text) for at, text in before.heads if at < same],
        before.given[:same],
        before.ends[:same],
    )
    for number in range(same, len(wanted)):
        _add(dialogue, number, wanted[number])
    if not dialogue.said:
        raise InvalidInput("there is no message to answer: the list has only system messages, or words of nobody")
    return dialogue


def session_of(messages: Sequence[Message | Mapping[str, Any]]) -> str:
    """A name for a dialogue that is sent whole each time: made from its first words, which stay the same.

    Raises:
        InvalidInput: its first message, or a system message before it, is in no form of OpenAI's.
    """
    checked = (_checked(number, given) for number, given in enumerate(messages))
    first = next((message for message in checked if message.role is not Role.SYSTEM), None)
    said = f"{first.role}\x00{first.text}" if first else ""
    return "chat-" + hashlib.sha256(said.encode(errors="surrogatepass")).hexdigest()[:24]


def in_common(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many entries both begin with: a comparison that is quick where they are the same objects."""
    shorter = min(len(one), len(other))
    if one[:shorter] == other[:shorter]:
        return shorter
    return next(at for at in range(shorter) if one[at] != other[at])


def _add(dialogue: Dialogue, number: int, given: object) -> None:
    message = _checked(number, given)
    blank = not message.content.strip()
    if message.role is Role.SYSTEM:
        if not blank:
            dialogue.heads.append((number, check_characters(message.content, "content of a system message")))
    elif message.role is Role.TOOL and blank:
        dialogue.said.append(message.model_copy(update={"content": NOTHING}))
    elif message.role is not Role.ASSISTANT or message.text:
        check_text(message.text, f"content of a {message.role} message")
        dialogue.said.append(message)
    dialogue.given.append(copy.deepcopy(given) if isinstance(given, Mapping) else given)
    dialogue.ends.append(len(dialogue.said))


def _checked(number: int, given: object) -> Message:
    try:
        return given if isinstance(given, Message) else Message.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(step) for step in first["loc"])
        raise InvalidInput(
            f"message {number} is not in the form {{'role': ..., 'content': ...}}: {where}: {first['msg']}"
        ) from None
