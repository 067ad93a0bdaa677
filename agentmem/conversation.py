"""Conversation: one turn, readable top to bottom."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from agentmem.asynchronous import AsyncReplyStream
from agentmem.dialogue import Dialogue, check_dialogue
from agentmem.errors import InvalidInput, NotFound
from agentmem.memories import Memories
from agentmem.model.generation import UNCHANGED, Generation, OnStride
from agentmem.model.grammar import Rules
from agentmem.model.sampling import Sampling
from agentmem.reader import Recalled
from agentmem.reads import attention_by_token, memories_read, tokens_read
from agentmem.recognising import PREVIOUS, Recogniser
from agentmem.records import Memory, Message, Reply, Role, Scope, Usage
from agentmem.text import check_text
from agentmem.tools import check_choice, check_format, check_tools, grammar, stored_message
from agentmem.turns import (
    ReplyStream,
    TurnRequest,
    answer,
    branch,
    finished,
    noted,
    said,
    turn_text,
    with_ids,
    words,
)
from agentmem.window import Window, fit
from agentmem.writer import Turn

if TYPE_CHECKING:
    from agentmem.llm import MemoryLLM

RESUMED_CHUNKS = 64
"""Newest chunks of a session that is opened again, from which its window is made."""

_END_OF_TIME = datetime.max.replace(tzinfo=UTC)

UNREAD = 30.0
"""Seconds for which other threads wait for a stream that is open and not read."""

_LOOK_EVERY = 0.5

QUERY_CHARACTERS = 1000
"""Recall looks for what the end of the newest message is about."""


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
        self._stored = Recogniser(llm.store, self._handle, session, llm.writer.first_chunk)
        self._dialogue: Dialogue | None = None
        """The whole list that was sent last."""
        self._previous: dict[str, str] = {}
        """The turn that came before, of turns whose ids were given."""
        self._lock = threading.Lock()
        self._speaking: int | None = None
        self._unread_since: float | None = None
        """Since when the reader of an open stream has not asked for more (``time.monotonic``)."""
        self._resume = resume
        """The newest turns of the session are still to be read."""

    # ------------------------------------------------------------------------------------------------ what users call

    def chat(self, message: str | Sequence[Message | dict[str, Any]], **options: Any) -> Reply:
        """Say something and get the reply.

        ``message`` is the new user message, or the whole message list: then the list is the dialogue so far, its
        recent end is the window, everything older is read as memory, and what was stored before is not stored again.

        Options: ``max_new_tokens``, ``temperature`` (0 is greedy), ``top_p``, ``top_k_tokens``, ``seed``, ``stop``;
        ``tools``, ``tool_choice`` and ``response_format`` in OpenAI's form (a required call and JSON need the extra
        ``structured``); with ``response_format`` and tools to choose from, the reply is either a call or follows it;
        ``after``, the ``Reply.turn`` of this session that the message (or the list, then of new messages only) follows;
        ``remember``, False to read memories and store nothing; ``reply_turn``, an id for the reply's turn, where it has
        to be known before the reply.

        Raises InvalidInput for text or options that cannot be used, NotFound for a turn that is not (or no longer)
        stored, StoreError when the turn could not be stored.
        """
        stream = self.stream(message, **options)
        for _ in stream:
            pass
        return stream.reply

    async def achat(self, message: str | Sequence[Message | dict[str, Any]], **options: Any) -> Reply:
        """``chat`` for event loops. A task that is cancelled stops generating."""
        async with self.astream(message, **options) as stream:
            async for _ in stream:
                pass
        return stream.reply

    def astream(self, message: str | Sequence[Message | dict[str, Any]], **options: Any) -> AsyncReplyStream:
        """``stream`` for event loops: ``async for piece in conversation.astream(...)``."""
        return AsyncReplyStream(partial(self.stream, message, **options))

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
        tools: Sequence[Mapping[str, Any]] = (),
        tool_choice: str | Mapping[str, Any] = "auto",
        response_format: Mapping[str, Any] | None = None,
        after: str | None = None,
        remember: bool = True,
        reply_turn: str | None = None,
    ) -> ReplyStream:
        """``chat``, piece by piece. Bad input raises here, not at the first piece."""
        whole = after is None and not isinstance(message, str)
        system, messages = self._checked(message, whole)
        checked = check_tools(tools)
        offered = () if tool_choice == "none" else checked
        required, schema = check_choice(tool_choice, checked), check_format(response_format)
        wanted = self._grammar(offered, required, schema)
        sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k_tokens, seed=seed)
        limit = self._llm.max_new_tokens if max_new_tokens is None else max_new_tokens
        most = self._llm.model.max_positions - 1
        if not isinstance(limit, int) or not 1 <= limit <= most:
            raise InvalidInput(f"max_new_tokens must be a whole number from 1 to {most}, not {max_new_tokens!r}")
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        if not all(isinstance(one, str) and one for one in stops):
            raise InvalidInput(f"stop must be one or more non-empty strings, not {stop!r}")
        done: list[Reply] = []
        request = TurnRequest(
            system=system,
            messages=messages,
            whole=whole,
            after=after,
            budget=min(most + 1 - limit, self._llm.window_tokens),
            max_new_tokens=limit,
            sampling=sampling,
            stop=stops,
            tools=offered,
            reader=self._llm.model.chat.answers(offered, constrained=wanted is not None) if offered else None,
            grammar=wanted,
            remember=remember,
            reply_turn=reply_turn,
        )
        return ReplyStream(self._turn(request, done), done, request)

    def _checked(self, message: object, whole: bool) -> tuple[Message | None, list[Message]]:
        """The system text and the messages, checked: of a whole list, what is not in the one before it."""
        if isinstance(message, str):
            return self.system, [Message(role=Role.USER, content=check_text(message, "message"))]
        dialogue = check_dialogue(message, self._dialogue if whole else None)
        if whole:
            self._dialogue = dialogue
        return dialogue.system or self.system, dialogue.said

    def _grammar(
        self,
        offered: Sequence[Mapping[str, Any]],
        required: Sequence[Mapping[str, Any]] | None,
        schema: Mapping[str, Any] | None,
    ) -> str | None:
        """What the reply has to follow, checked: a call of a tool, a schema, or either."""
        model = self._llm.model
        either = required is None and schema is not None
        rules = Rules(model.chat.token_id)
        wanted = grammar(model.chat.form, rules, offered if either else required, schema if either else None)
        if wanted is not None:
            model.grammars.check(wanted)
        return wanted

    # ------------------------------------------------------------------------------------------------ one turn

    def _turn(self, request: TurnRequest, done: list[Reply]) -> Generator[str, None, None]:
        llm = self._llm
        with self._one_at_a_time():
            past = self._known(request)
            render = partial(llm.model.chat.render, tools=request.tools)
            self._handle.tend(llm.prefixes, fingerprint=llm.writer.fingerprint)
            kept = llm.prefixes.of(self._handle.space, self.session)
            window = fit(request.system, past, render, request.budget, None if kept is None else kept.begins)
            # What the window does not show must be memory before it is needed.
            if request.remember:
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
                cancel=request.cancel,
                grammar=request.grammar,
                begun=None if kept is None else kept.prefix,
            )
            shown = 0
            try:
                for piece in self._handed_out(words(generation, request)):
                    shown += len(piece)
                    yield piece
            finally:  # also when the consumer closes the stream: what was said so far is remembered
                generation.close()
                done.append(self._finish(request, past, window, recalls, generation))
            if rest := done[0].text[shown:]:  # it looked like a call of a tool, and was none
                yield from self._handed_out([rest])

    @contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        """Turns of other threads wait, unless nobody reads the stream that they wait for: its reader may wait for them.

        A second turn in the thread that left a stream open would wait for itself.
        """
        if self._speaking == threading.get_ident():
            raise InvalidInput("the previous reply's stream is still open: read it to its end, or close it, first")
        while not self._lock.acquire(timeout=_LOOK_EVERY):
            since = self._unread_since
            if since is not None and time.monotonic() - since > UNREAD:
                raise InvalidInput(
                    f"the previous reply's stream has been open for {UNREAD:.0f} s without being read: read it to its "
                    "end, or close it, first"
                )
        try:
            self._speaking = threading.get_ident()
            yield
        finally:
            self._speaking = self._unread_since = None
            self._lock.release()

    def _handed_out(self, pieces: Iterable[str]) -> Iterator[str]:
        """The pieces, with a note of since when the last one has been with the reader."""
        for piece in pieces:
            self._unread_since = time.monotonic()
            yield piece
            self._unread_since = None

    def _newest(self, before: str | None = None) -> list[tuple[Message, str]]:
        """The newest turns of this session that are stored, in order; those up to ``before``, if it is one of them."""
        chunks = self._handle.list(sort="-created_at", limit=1, turns=[before]) if before else []
        turns: dict[str, list[Memory]] = {}
        newest = self._handle.list(
            sort="-created_at",
            limit=RESUMED_CHUNKS,
            session=self.session,
            until=chunks[0].created_at + timedelta(microseconds=1) if chunks else _END_OF_TIME,
        )
        for memory in reversed(newest):
            turns.setdefault(memory.turn, []).append(memory)
        found = []
        for turn, chunks in turns.items():
            chunks.sort(key=lambda chunk: chunk.chunk_no)
            found.append((stored_message(chunks[0].role, turn_text(chunks)), turn))
            if PREVIOUS in chunks[0].meta:
                self._previous[turn] = str(chunks[0].meta[PREVIOUS])
            self._stored.chunks[turn] = [chunk.id for chunk in chunks]
        return found

    def _known(self, request: TurnRequest) -> list[tuple[Message, str]]:
        """The dialogue so far with turn ids: each the hash of everything up to it, so a resent list keeps them."""
        if request.whole:
            return self.turns_of(request.messages)
        past = self._up_to(request.after)
        return [*past, *with_ids(request.messages, past[-1][1] if past else self._seed)]

    def turns_of(self, messages: list[Message]) -> list[tuple[Message, str]]:
        """A whole dialogue with the ids of its turns: those that were stored before keep theirs, given ones included.

        A reply whose id was given (``reply_turn``) is known by the turn that it follows, and by its words.
        """
        return self._stored.turns_of(messages)

    def _up_to(self, turn: str | None) -> list[tuple[Message, str]]:
        """The window's messages up to a turn of this session (None: the newest)."""
        if self._resume:  # a session goes on where it stopped; not read for who sends the whole dialogue anyway
            self._resume, newest = False, self._newest()
            self._past = branch(newest, newest[-1][1], self._previous) if newest else []
        if turn is None or (self._past and self._past[-1][1] == turn):
            return list(self._past)
        turns = self._newest(before=turn)
        if all(id != turn for _, id in turns):
            raise NotFound(f"no turn {turn!r} in this session")
        return branch(turns, turn, self._previous)

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
        exclude = self._stored.memory_ids(shown)
        wanted = f"{past[-1][0].text[-QUERY_CHARACTERS:]} {said}" if query is None else query
        return self._llm.reader.recall(self._handle, wanted, exclude, current)

    def _recall_prompt(self, past: list[tuple[Message, str]], window: Window) -> tuple[list[int], list[Recalled]]:
        """What each stretch of the prompt reads, with its first token.

        The last one recalls for the newest message. What is in front of that message reads nothing, or, where the
        recipe has a stride for prompts, each stretch of it recalls for its own text (Memory3 section 3.4).
        """
        stride, n = self._llm.writer.recipe.prompt_stride, len(window.prompt)
        if stride is None and window.settled:  # so its KV is the window's own, and serves the next turn as well
            return [0, window.settled], [Recalled(), self._recall(past, window)]
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

    def _store(self, turns: Sequence[tuple[Message, str]], named: str | None = None) -> None:
        """Write the turns that are not stored yet, in one transaction. One whose id was given notes what it follows."""
        new = []
        for at in range(self._stored.unstored(turns), len(turns)):
            message, id = turns[at]
            meta = {PREVIOUS: turns[at - 1][1]} if id == named else {}
            new.append(Turn(message.role, message.text, self.session, id, meta=meta))
        self._stored.add(self._llm.writer.write(self._handle, new))

    def _finish(
        self,
        request: TurnRequest,
        past: list[tuple[Message, str]],
        window: Window,
        recalls: list[Recalled],
        generation: Generation,
    ) -> Reply:
        """Store the turn and the reply, credit the memories that were read, and move the window on."""
        given = answer(generation, request)
        attention = attention_by_token(recalls, generation)
        reads = memories_read(recalls, attention)
        turns = [*past, *said(given, past[-1][1], request)]
        notes = [*noted(given), *(note for recalled in recalls for note in recalled.notes)]
        if window.cut_characters:
            readable = "readable as memory only" if request.remember else "not read"
            notes.append(
                f"the message is longer than the window: its first {window.cut_characters} characters were {readable}"
            )
        if request.remember:
            self._store(turns, request.reply_turn)
            self._handle.record_uses([(read.memory.id, read.attention) for read in reads], turn=past[-1][1])
            self._past, self._resume = turns[-(window.kept + 1) :], False
            begins = past[-window.kept][1]
            self._llm.prefixes.note(self._handle.space, self.session, generation.prefix, begins)
        return Reply(
            text=given.text,
            tool_calls=given.calls,
            memories=tuple(reads),
            tokens=tokens_read(attention, generation, given.text),
            finish_reason=finished(given, generation.finish_reason),
            usage=Usage(
                prompt_tokens=len(window.prompt),
                completion_tokens=len(generation.token_ids),
                memory_tokens=max(recalled.n_tokens for recalled in recalls),
            ),
            turn=turns[-1][1],
            notes=tuple(dict.fromkeys(notes)),
        )
