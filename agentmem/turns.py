"""What a turn is asked with, and what comes back piece by piece: the checks and records around ``Conversation``."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from agentmem.errors import InvalidInput
from agentmem.model.generation import Generation
from agentmem.model.sampling import Sampling
from agentmem.records import Message, Reply, Role, ToolCall
from agentmem.text import check_text
from agentmem.tools import call_text, read_calls, words_only


@dataclass(frozen=True)
class TurnRequest:
    """What ``stream`` was asked for, checked. ``budget`` and ``max_new_tokens`` are tokens of prompt and reply."""

    system: Message | None
    messages: list[Message]
    whole: bool
    """The messages are the whole dialogue; else they go on behind ``after``."""
    after: str | None
    """The turn that the messages follow; None: the newest one."""
    budget: int
    max_new_tokens: int
    sampling: Sampling
    stop: tuple[str, ...]
    tools: tuple[str, ...] = ()
    """Names of the tools that the system text offers."""
    grammar: str | None = None
    """What the reply has to follow."""
    remember: bool = True
    reply_turn: str | None = None
    """Id of the reply's turn; None: the chained hash."""
    cancel: threading.Event = field(default_factory=threading.Event)


class ReplyStream:
    """The reply as it is generated: iterate for pieces of text; ``reply`` is whole once they have run out.

    ``close`` (or leaving the ``with`` block) stops the generation; what was said until then is remembered.
    """

    def __init__(self, turn: Generator[str, None, None], done: list[Reply], request: TurnRequest):
        self._turn = turn
        self._done = done
        self._cancel = request.cancel

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        return next(self._turn)

    def close(self) -> None:
        """Stop generating."""
        self._turn.close()

    def cancel(self) -> None:
        """Stop generating at the next token, from any thread: the iteration ends by itself, and the reply is whole.

        What was said until then is remembered, as after ``close``.
        """
        self._cancel.set()

    def __enter__(self) -> ReplyStream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def reply(self) -> Reply:
        """The whole reply. Raises InvalidInput while pieces are still to come."""
        if not self._done:
            raise InvalidInput("the reply is not complete: iterate over the stream to its end, or close it, first")
        return self._done[0]


def check_dialogue(
    message: str | Sequence[Message | dict[str, Any]], system: Message | None
) -> tuple[Message | None, list[Message]]:
    """The system message (``system`` unless the list begins with one) and the other messages.

    Raises:
        InvalidInput: no text that can be stored, or no list of messages.
    """
    if isinstance(message, str):
        return system, [Message(role=Role.USER, content=check_text(message, "message"))]
    if not isinstance(message, Sequence) or not message:
        raise InvalidInput(f"message must be a str or a non-empty list of messages, not {message!r:.80}")
    try:
        messages = [m if isinstance(m, Message) else Message.model_validate(m) for m in message]
    except ValidationError as error:
        raise InvalidInput(f"a message is not in the form {{'role': ..., 'content': ...}}: {error}") from error
    for m in messages:
        check_text(m.content, f"content of a {m.role} message")
    if messages[0].role is Role.SYSTEM:
        system, *messages = messages
    if not messages or any(m.role is Role.SYSTEM for m in messages):
        raise InvalidInput(
            "a message list has at most one system message, at its start, and at least one other message"
        )
    return system, messages


def next_id(previous: str, message: Message) -> str:
    """A turn's id: the chained hash of the dialogue up to it, 128 bits in hex."""
    return hashlib.sha256(f"{previous}\x00{message.role}\x00{message.content.strip()}".encode()).hexdigest()[:32]


def with_ids(messages: Iterable[Message], at: str) -> list[tuple[Message, str]]:
    """The messages with the ids of their turns, behind the turn ``at``: a resent list gets the ids that it had."""
    turns = []
    for message in messages:
        at = next_id(at, message)
        turns.append((message, at))
    return turns


def branch(
    turns: Sequence[tuple[Message, str]], last: str, previous: Mapping[str, str] | None = None
) -> list[tuple[Message, str]]:
    """Those of a session's newest turns (in order) that lead to the turn ``last``, which is one of them.

    A session that was continued twice from one turn holds both branches; the chained ids tell them apart, or
    ``previous`` does, for turns whose ids were given. Where nothing leads further back, because a turn was changed or
    forgotten since, all before it are taken as they were written.
    """
    by_id = {turn: at for at, (_, turn) in enumerate(turns)}
    at = by_id[last]
    path = [turns[at]]
    while at > 0:
        message, turn = turns[at]
        if previous is not None and turn in previous:
            before = by_id.get(previous[turn])
        else:
            before = next((i for i in range(at - 1, -1, -1) if next_id(turns[i][1], message) == turn), None)
        if before is None:
            return [*turns[:at], *path[::-1]]
        at = before
        path.append(turns[at])
    return path[::-1]


def without_leading_space(pieces: Iterable[str]) -> Iterator[str]:
    """The pieces without the space that many chat templates put before an answer."""
    begun = False
    for piece in pieces:
        piece = piece if begun else piece.lstrip()
        if piece:
            begun = True
            yield piece


def words(generation: Iterable[str], request: TurnRequest) -> Iterator[str]:
    """What is shown of an answer as it is generated: with tools, its words up to where it calls one."""
    pieces = without_leading_space(generation)
    return words_only(pieces) if request.tools else pieces


def answer(generation: Generation, request: TurnRequest) -> tuple[str, tuple[ToolCall, ...]]:
    """The words of a finished answer, and the tools that it calls."""
    text = generation.text.strip()
    return read_calls(text, request.tools) if request.tools else (text, ())


def said(text: str, calls: Sequence[ToolCall], before: str, request: TurnRequest) -> list[tuple[Message, str]]:
    """The assistant's turn behind the turn ``before``, with its id; none when nothing was said."""
    content = call_text(text, calls)
    if not content:
        return []
    turns = with_ids([Message(role=Role.ASSISTANT, content=content)], before)
    return turns if request.reply_turn is None else [(turns[0][0], request.reply_turn)]
