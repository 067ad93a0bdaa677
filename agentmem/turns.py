"""What a turn is asked with, and what comes back piece by piece: the checks and records around ``Conversation``."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agentmem.errors import InvalidInput
from agentmem.model.calls import Answer, AnswerReader
from agentmem.model.generation import Generation
from agentmem.model.sampling import Sampling
from agentmem.records import FinishReason, Memory, Message, Reply, Role


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
    tools: tuple[dict[str, Any], ...] = ()
    """What is offered to be called."""
    reader: AnswerReader | None = None
    """Reads answers that may call tools; None: there are none."""
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


def in_order(chunks: Iterable[Memory]) -> list[Memory]:
    """The chunks of one turn as they follow each other."""
    return sorted(chunks, key=lambda chunk: chunk.chunk_no)


def turn_text(chunks: Iterable[Memory]) -> str:
    """The words of the turn that these are the chunks of, in any order."""
    return "".join(chunk.text for chunk in in_order(chunks))


def next_id(previous: str, message: Message) -> str:
    """A turn's id: the chained hash of the dialogue up to it, 128 bits in hex."""
    return hashlib.sha256(f"{previous}\x00{message.role}\x00{message.text.strip()}".encode()).hexdigest()[:32]


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
    return without_leading_space(generation) if request.reader is None else request.reader.words(generation)


def answer(generation: Generation, request: TurnRequest) -> Answer:
    """A finished answer: its words, and the tools that it calls."""
    text = generation.text.strip()
    return Answer(text) if request.reader is None else request.reader.read(text)


def finished(answer: Answer, reason: FinishReason) -> FinishReason:
    """Why the reply ended, when its generation ended for this reason."""
    if answer.calls:
        return "tool_calls"
    return "broken_call" if answer.problem and reason == "stop" else reason


def noted(answer: Answer) -> list[str]:
    """What is to be said about an answer."""
    return [f"what looks like a call of a tool is none: {answer.problem}"] if answer.problem else []


def said(answer: Answer, before: str, request: TurnRequest) -> list[tuple[Message, str]]:
    """The assistant's turn behind the turn ``before``, with its id; none when nothing was said."""
    message = Message(role=Role.ASSISTANT, content=answer.text, tool_calls=answer.calls)
    if not message.text:
        return []
    turns = with_ids([message], before)
    return turns if request.reply_turn is None else [(turns[0][0], request.reply_turn)]
