"""Conversation: one turn, readable top to bottom."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from pydantic import ValidationError

from agentmem.errors import InvalidInput
from agentmem.memories import Memories
from agentmem.model.generation import UNCHANGED, Generation, OnStride, Sampling
from agentmem.reader import Recalled
from agentmem.records import Memory, MemoryRead, Message, Reply, Role, Scope, Usage
from agentmem.text import check_text
from agentmem.window import Window, fit
from agentmem.writer import Turn

if TYPE_CHECKING:
    from agentmem.llm import MemoryLLM

RESUMED_CHUNKS = 64
"""Newest chunks of a session that is opened again, from which its window is made."""

QUERY_CHARACTERS = 1000
"""Recall looks for what the end of the newest message is about."""


@dataclass(frozen=True)
class TurnRequest:
    """What ``stream`` was asked for, checked. ``budget`` and ``max_new_tokens`` are tokens of prompt and reply."""

    system: Message | None
    messages: list[Message]
    seed_of_ids: str | None
    budget: int
    max_new_tokens: int
    sampling: Sampling
    stop: tuple[str, ...]


class ReplyStream:
    """The reply as it is generated: iterate for pieces of text; ``reply`` is whole once they have run out.

    ``close`` (or leaving the ``with`` block) stops the generation; what was said until then is remembered.
    """

    def __init__(self, turn: Generator[str, None, None], done: list[Reply]):
        self._turn = turn
        self._done = done

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        return next(self._turn)

    def close(self) -> None:
        """Stop generating."""
        self._turn.close()

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


class Conversation:
    """A dialogue in one scope: a window of recent turns in context, and everything older read as memory.

    Make one with ``MemoryLLM.conversation``. Turns of one conversation run one after another; several conversations
    may be used from several threads.
    """

    def __init__(self, llm: MemoryLLM, scope: Scope, session: str, system: str | None, *, resume: bool):
        self._llm = llm
        self.session = session
        self.system = None if system is None else Message(role=Role.SYSTEM, content=check_text(system, "system"))
        self._handle = llm.store.scope(scope)
        self.memories = Memories(llm.store, self._handle, llm.writer)
        self._past: list[tuple[Message, str]] = []
        """Messages of the window with the ids of their turns."""
        self._seed = uuid4().hex
        self._stored: dict[str, list[str]] = {}
        """Memory ids by turn id, of what this conversation wrote."""
        self._lock = threading.Lock()
        self._speaking: int | None = None
        if resume:
            self._resume()

    # ------------------------------------------------------------------------------------------------ what users call

    def chat(self, message: str | Sequence[Message | dict[str, Any]], **options: Any) -> Reply:
        """Say something and get the reply.

        ``message`` is the new user message, or the whole message list: then the list is the dialogue so far, its
        recent end is the window, everything older is read as memory, and what was stored before is not stored again.

        Options: ``max_new_tokens``, ``temperature`` (0 is greedy), ``top_p``, ``top_k_tokens``, ``seed``, ``stop``.

        Raises InvalidInput for text or options that cannot be used, StoreError when the turn could not be stored.
        """
        stream = self.stream(message, **options)
        for _ in stream:
            pass
        return stream.reply

    async def achat(self, message: str | Sequence[Message | dict[str, Any]], **options: Any) -> Reply:
        """``chat`` in a thread of its own, for event loops."""
        return await asyncio.to_thread(self.chat, message, **options)

    def stream(
        self,
        message: str | Sequence[Message | dict[str, Any]],
        *,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k_tokens: int = 0,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
    ) -> ReplyStream:
        """``chat``, piece by piece. Bad input raises here, not at the first piece."""
        system, messages, seed_of_ids = self._dialogue(message)
        sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k_tokens, seed=seed)
        limit = self._llm.max_new_tokens if max_new_tokens is None else max_new_tokens
        most = self._llm.model.max_positions - 1
        if not isinstance(limit, int) or not 1 <= limit <= most:
            raise InvalidInput(f"max_new_tokens must be a whole number from 1 to {most}, not {max_new_tokens!r}")
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        if not all(isinstance(one, str) and one for one in stops):
            raise InvalidInput(f"stop must be one or more non-empty strings, not {stop!r}")
        done: list[Reply] = []
        budget = min(most + 1 - limit, self._llm.window_tokens)
        request = TurnRequest(system, messages, seed_of_ids, budget, limit, sampling, stops)
        return ReplyStream(self._turn(request, done), done)

    # ------------------------------------------------------------------------------------------------ one turn

    def _turn(self, request: TurnRequest, done: list[Reply]) -> Generator[str, None, None]:
        llm = self._llm
        with self._one_at_a_time():
            past = self._known(request.messages, request.seed_of_ids)
            window = fit(request.system, [message for message, _ in past], llm.model.chat.render, request.budget)
            # What the window does not show must be memory before it is needed.
            self._store(past if window.cut_characters else past[: len(past) - window.kept])
            starts, recalls = self._recall_prompt(past, window)
            generation = llm.model.generate(
                window.prompt,
                reads=[(start, recalled.placed) for start, recalled in zip(starts, recalls, strict=True)],
                on_stride=self._on_stride(past, window, recalls),
                stride=llm.writer.recipe.stride,
                max_new_tokens=request.max_new_tokens,
                sampling=request.sampling,
                stop=request.stop,
            )
            try:
                yield from without_leading_space(generation)
            finally:  # also when the consumer closes the stream: what was said so far is remembered
                generation.close()
                done.append(self._finish(past, window, recalls, generation))

    @contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        """Turns of other threads wait; a second turn in the thread that left a stream open would wait for itself."""
        if self._speaking == threading.get_ident():
            raise InvalidInput("the previous reply's stream is still open: read it to its end, or close it, first")
        with self._lock:
            self._speaking = threading.get_ident()
            try:
                yield
            finally:
                self._speaking = None

    def _resume(self) -> None:
        """Take up a session where it stopped: its newest turns are the window again."""
        turns: dict[str, list[Memory]] = {}
        for memory in reversed(self._handle.list(sort="-created_at", limit=RESUMED_CHUNKS, session=self.session)):
            turns.setdefault(memory.turn, []).append(memory)
        for turn, chunks in turns.items():
            chunks.sort(key=lambda chunk: chunk.chunk_no)
            said = Message(role=chunks[0].role, content="".join(chunk.text for chunk in chunks))
            self._past.append((said, turn))
            self._stored[turn] = [chunk.id for chunk in chunks]

    def _dialogue(
        self, message: str | Sequence[Message | dict[str, Any]]
    ) -> tuple[Message | None, list[Message], str | None]:
        """System message, messages, and what turn ids derive from (None: the messages continue this conversation)."""
        if isinstance(message, str):
            return self.system, [Message(role=Role.USER, content=check_text(message, "message"))], None
        if not isinstance(message, Sequence) or not message:
            raise InvalidInput(f"message must be a str or a non-empty list of messages, not {message!r:.80}")
        try:
            messages = [m if isinstance(m, Message) else Message.model_validate(m) for m in message]
        except ValidationError as error:
            raise InvalidInput(f"a message is not in the form {{'role': ..., 'content': ...}}: {error}") from error
        for m in messages:
            check_text(m.content, f"content of a {m.role} message")
        system = self.system
        if messages[0].role is Role.SYSTEM:
            system, *messages = messages
        if not messages or any(m.role is Role.SYSTEM for m in messages):
            raise InvalidInput(
                "a message list has at most one system message, at its start, and at least one other message"
            )
        return system, messages, self.session

    def _known(self, messages: list[Message], seed_of_ids: str | None) -> list[tuple[Message, str]]:
        """The dialogue so far with turn ids: each the hash of everything up to it, so a resent list keeps them."""
        if seed_of_ids is None:
            past, at = list(self._past), self._past[-1][1] if self._past else self._seed
        else:
            past, at = [], seed_of_ids
        for message in messages:
            at = next_id(at, message)
            past.append((message, at))
        return past

    def _recall(
        self,
        past: list[tuple[Message, str]],
        window: Window,
        said: str = "",
        query: str | None = None,
        current: Recalled | None = None,
    ) -> Recalled:
        """Recall for the end of the newest message (and what was generated so far), without what the window shows."""
        shown = past[len(past) - window.kept :] if not window.cut_characters else []
        exclude = {id for _, turn in shown for id in self._stored.get(turn, ())}
        wanted = f"{past[-1][0].content[-QUERY_CHARACTERS:]} {said}" if query is None else query
        return self._llm.reader.recall(self._handle, wanted, exclude, current)

    def _recall_prompt(self, past: list[tuple[Message, str]], window: Window) -> tuple[list[int], list[Recalled]]:
        """What each stretch of the prompt reads, with its first token. The last one is whole; most recipes have one.

        The last one recalls for the newest message, those before it for their own text (Memory3 section 3.4).
        """
        stride, n = self._llm.writer.recipe.prompt_stride, len(window.prompt)
        starts = [0] if stride is None else sorted({0, *range(n - stride, 0, -stride)})
        recalls: list[Recalled] = []
        for start, stop in pairwise(starts):
            text = self._llm.model.tokenizer.decode(window.prompt[start:stop], skip_special_tokens=True)
            recalls.append(self._recall(past, window, query=text, current=recalls[-1] if recalls else None))
        recalls.append(self._recall(past, window, current=recalls[-1] if recalls else None))
        return starts, recalls

    def _on_stride(self, past: list[tuple[Message, str]], window: Window, recalls: list[Recalled]) -> OnStride:
        """Every stride of tokens (Memory3 section 3.4): recall again, and swap the memory if it has changed."""

        def on_stride(token_ids: list[int]) -> Any:
            said = self._llm.model.tokenizer.decode(
                token_ids[-self._llm.writer.recipe.stride :], skip_special_tokens=True
            )
            recalled = self._recall(past, window, said, current=recalls[-1])
            if recalled.ids == recalls[-1].ids:
                return UNCHANGED
            recalls.append(recalled)
            return recalled.placed

        return on_stride

    def _store(self, turns: Sequence[tuple[Message, str]]) -> None:
        """Write the turns that are not stored yet, in one transaction."""
        new = [Turn(message.role, message.content, self.session, id) for message, id in turns if id not in self._stored]
        for memory in self._llm.writer.write(self._handle, new):
            self._stored.setdefault(memory.turn, []).append(memory.id)

    def _finish(
        self, past: list[tuple[Message, str]], window: Window, recalls: list[Recalled], generation: Generation
    ) -> Reply:
        """Store the turn and the reply, credit the memories that were read, and move the window on."""
        reads = _reads(recalls, generation)
        text = generation.text.strip()
        said = Message(role=Role.ASSISTANT, content=text)
        turns = [*past, (said, next_id(past[-1][1], said))] if text else past
        self._store(turns)
        self._handle.record_uses([(read.memory.id, read.attention) for read in reads], turn=past[-1][1])
        self._past = turns[-(window.kept + 1) :]
        notes = [note for recalled in recalls for note in recalled.notes]
        if window.cut_characters:
            notes.append(
                f"the message is longer than the window: its first {window.cut_characters} characters "
                "were readable as memory only"
            )
        return Reply(
            text=text,
            memories=tuple(reads),
            finish_reason=generation.finish_reason,
            usage=Usage(
                prompt_tokens=len(window.prompt),
                completion_tokens=len(generation.token_ids),
                memory_tokens=max(recalled.n_tokens for recalled in recalls),
            ),
            notes=tuple(dict.fromkeys(notes)),
        )


def without_leading_space(pieces: Iterable[str]) -> Iterator[str]:
    """The pieces without the space that many chat templates put before an answer."""
    begun = False
    for piece in pieces:
        piece = piece if begun else piece.lstrip()
        if piece:
            begun = True
            yield piece


def next_id(previous: str, message: Message) -> str:
    """A turn's id: the chained hash of the dialogue up to it, 128 bits in hex."""
    return hashlib.sha256(f"{previous}\x00{message.role}\x00{message.content.strip()}".encode()).hexdigest()[:32]


def _reads(recalls: Sequence[Recalled], generation: Generation) -> list[MemoryRead]:
    """Every memory that was read, with its attention share as the mean over all answer tokens."""
    steps = max(1, len(generation.token_ids))
    total: dict[str, float] = {}
    by_placed = {id(recalled.placed): recalled for recalled in recalls}
    for placed, shares in generation.shares:
        for memory_id, share in zip(by_placed[id(placed)].ids, shares.sum(0).tolist(), strict=True):
            total[memory_id] = total.get(memory_id, 0.0) + share / steps
    hits = {hit.memory.id: (hit, recalled) for recalled in reversed(recalls) for hit in recalled.hits}
    return [
        MemoryRead(memory=hit.memory, score=hit.score, attention=total.get(id, 0.0), rebuilt=id in recalled.rebuilt)
        for id, (hit, recalled) in sorted(hits.items(), key=lambda item: -total.get(item[0], 0.0))
    ]
