"""A conversation that is one stream: nothing is recalled, everything ever said stays readable through blocks (InfLLM).

The text of every turn is stored first, as always; the stream's blocks, window and counters follow in one commit. A
session that is opened again goes on from them. What cannot be used (another model, damage, something was forgotten) is
encoded again from the text.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING

from agentmem.conversation import Conversation
from agentmem.errors import InvalidInput, PayloadDamaged, StoreBusy, StoreFull, StoreUnavailable, StreamChanged
from agentmem.model.generation import Generation
from agentmem.model.stream import Stream
from agentmem.recognising import PREVIOUS
from agentmem.records import Memory, MemoryRead, Message, Reply, Role, Scope, Usage
from agentmem.store import StoredStream
from agentmem.tools import stored_message
from agentmem.turns import TurnRequest, answer, finished, in_order, noted, said, turn_text, words

if TYPE_CHECKING:
    from agentmem.llm import MemoryLLM
    from agentmem.recipes import StreamRecipe

log = logging.getLogger(__name__)

_PAGE = 1000
"""Memories listed at once when a session's turns are read."""


class StreamConversation(Conversation):
    """A dialogue whose whole past is in context, through sinks, a window and retrieved blocks.

    Only this session's turns are read: ``infllm`` knows no other. Make one with ``MemoryLLM.conversation``.
    """

    def __init__(self, llm: MemoryLLM, recipe: StreamRecipe, scope: Scope, session: str, system: str | None):
        super().__init__(llm, scope, session, system, resume=False)
        self._recipe = recipe
        self._stream: Stream | None = None
        self._kept: StoredStream | None = None
        self._fed: list[tuple[str, int]] = []
        """Turns that the stream holds: id and number of the first token."""
        self._unfed: list[int] = []
        """Generated tokens that the stream does not hold yet: the last one of a reply that was cut."""
        self._notes: list[str] = []

    @property
    def stream_tokens(self) -> int:
        """Tokens of the stream, as of the last turn."""
        return 0 if self._stream is None else self._stream.n_tokens

    # ------------------------------------------------------------------------------------------------ one turn

    def _turn(self, request: TurnRequest, done: list[Reply]) -> Generator[str, None, None]:
        if not request.remember:
            raise InvalidInput("a stream recipe remembers every turn; use another recipe for remember=False")
        with self._one_at_a_time(), self._whole_or_not():
            past, prompt = self._prepare(request)
            stream = self._running
            stream.count_reads()
            at = stream.n_tokens + 1
            generation = stream.generate(
                prompt[-1:],
                max_new_tokens=request.max_new_tokens,
                sampling=request.sampling,
                stop=request.stop,
                cancel=request.cancel,
                grammar=request.grammar,
            )
            shown = 0
            try:
                for piece in self._handed_out(words(generation, request)):
                    shown += len(piece)
                    yield piece
            finally:
                generation.close()
                done.append(self._finish_turn(request, past, prompt, at, generation))
            if rest := done[0].text[shown:]:
                yield from self._handed_out([rest])

    def _prepare(self, request: TurnRequest) -> tuple[list[tuple[Message, str]], list[int]]:
        """Read everything up to the last token of the prompt. Returns all turns, and the prompt's ids."""
        for attempt in range(2):
            self._open()
            past = self._known(request)
            turns, fed = [turn for _, turn in past], [turn for turn, _ in self._fed]
            if len(turns) == len(fed) or turns[: len(fed)] != fed:
                self._restart()
            try:
                prompt = self._catch_up(request, past[len(self._fed) :])
                if len(prompt) > 1:
                    self._running.feed(prompt[:-1])
                return past, prompt
            except PayloadDamaged as error:
                if attempt:
                    raise
                self._close()
                self._handle.drop_stream(self.session)
                self._notes.append(f"the stream was damaged and was encoded again from its text: {error}")
        raise AssertionError("two attempts either return or raise")

    @property
    def _running(self) -> Stream:
        assert self._stream is not None
        return self._stream

    def _catch_up(self, request: TurnRequest, new: Sequence[tuple[Message, str]]) -> list[int]:
        """Feed all turns up to the last reply among them. Returns the ids of what is to be answered."""
        stream, chat = self._running, self._llm.model.chat
        waiting: list[Message] = []

        def rendered() -> list[int]:
            if stream.n_tokens:
                return [*self._unfed, *chat.render_next(waiting)]
            return chat.render(waiting if request.system is None else [request.system, *waiting], request.tools)

        for message, turn in new:
            if message.role is not Role.ASSISTANT or (not waiting and not stream.n_tokens):
                self._fed.append((turn, stream.n_tokens))
                waiting.append(message)
                continue
            if waiting:
                stream.feed(rendered(), last_alone=True)
            self._fed.append((turn, stream.n_tokens))
            stream.feed(chat.said(message))
            self._unfed, waiting = [], []
        return rendered()

    def _finish_turn(
        self,
        request: TurnRequest,
        past: list[tuple[Message, str]],
        prompt: list[int],
        at: int,
        generation: Generation,
    ) -> Reply:
        """Store the turn and the reply, then the stream that holds both."""
        stream = self._running
        given = answer(generation, request)
        turns = [*past, *said(given, past[-1][1], request)]
        self._unfed = generation.token_ids[max(0, stream.n_tokens - at) :]
        if len(turns) > len(past):
            self._fed.append((turns[-1][1], at))
        self._store(turns, request.reply_turn)
        self._past = turns
        reads = self._reads(stream.counted_reads())
        self._handle.record_uses([(read.memory.id, read.attention) for read in reads], turn=past[-1][1])
        self._commit()
        notes, self._notes = (*self._notes, *noted(given)), []
        blocks = {block for heads in stream.retrieved.values() for head in heads for block in head}
        return Reply(
            text=given.text,
            tool_calls=given.calls,
            memories=tuple(reads),
            finish_reason=finished(given, generation.finish_reason),
            usage=Usage(
                prompt_tokens=len(prompt),
                completion_tokens=len(generation.token_ids),
                memory_tokens=len(blocks) * stream.plan.block_size,
            ),
            turn=turns[-1][1],
            notes=notes,
        )

    # ------------------------------------------------------------------------------------------------ the stream

    def _open(self) -> None:
        """The stream as it was left, unless it is at hand and nobody else changed it."""
        if self._stream is not None and self._kept is not None and self._kept.is_current():
            return
        self._close()
        self._past = self._said()
        stream, kept = self._new_stream()
        try:
            if (tail := kept.tail()) is not None:
                stream.restore(tail, kept.index())
        except PayloadDamaged as error:
            self._notes.append(f"the stream was damaged and was encoded again from its text: {error}")
            kept.close()
            self._handle.drop_stream(self.session)
            stream, kept = self._new_stream()
        if kept.why_empty:
            self._notes.append(f"the stream was encoded again from its text: {kept.why_empty}")
        elif self._past and not stream.n_tokens and not self._notes:
            self._notes.append("the stream was encoded again from its text: something of it was forgotten or evicted")
        self._stream, self._kept = stream, kept
        self._fed = [(turn, int(start)) for turn, start in kept.meta.get("turns", [])]
        self._unfed = [int(token) for token in kept.meta.get("unfed", [])]

    def _new_stream(self) -> tuple[Stream, StoredStream]:
        model = self._llm.model
        plan = self._recipe.plan(model)
        layout = self._llm.layout(plan)
        kept = self._handle.open_stream(
            self.session,
            fingerprint=model.kv_fingerprint(self._recipe.identity),
            record_bytes=max(1, layout.record_bytes),
            index_bytes=layout.index_bytes,
        )
        return Stream(model, plan, kept, layout=layout), kept

    def _restart(self) -> None:
        """Begin the stream anew: what it holds is not what was said."""
        self._close()
        self._handle.drop_stream(self.session)
        self._stream, self._kept = self._new_stream()
        self._fed, self._unfed = [], []

    def _close(self) -> None:
        if self._kept is not None:
            self._kept.close()
        self._stream = self._kept = None

    def _commit(self) -> None:
        """Keep the stream. It is a cache of the text: where it cannot be kept, it is encoded again later."""
        assert self._kept is not None
        try:
            self._kept.commit(self._running.tail(), self._running.n_tokens, {"turns": self._fed, "unfed": self._unfed})
        except (StreamChanged, StoreBusy, StoreFull, StoreUnavailable) as error:
            self._notes.append(f"the stream could not be kept, and will be encoded again from its text: {error}")
            self._close()

    @contextlib.contextmanager
    def _whole_or_not(self) -> Iterator[None]:
        """A turn that fails leaves the stream as of the last commit."""
        try:
            yield
        except BaseException:
            self._close()
            raise

    # ------------------------------------------------------------------------------------------------ what was said

    def _newest(self, before: str | None = None) -> list[tuple[Message, str]]:
        """Every turn: a stream begins with the first one."""
        return self._said()

    def _said(self) -> list[tuple[Message, str]]:
        """All turns of this session that are stored, in order, with their ids."""
        turns: dict[str, list[Memory]] = {}
        offset = 0
        while page := self._handle.list(sort="created_at", limit=_PAGE, offset=offset, session=self.session):
            offset += len(page)
            for memory in page:
                turns.setdefault(memory.turn, []).append(memory)
        self._stored.begin_anew({turn: [chunk.id for chunk in in_order(chunks)] for turn, chunks in turns.items()})
        told = {turn: chunks[0].meta.get(PREVIOUS) for turn, chunks in turns.items()}
        self._previous = {turn: str(previous) for turn, previous in told.items() if previous is not None}
        return [(stored_message(chunks[0].role, turn_text(chunks)), turn) for turn, chunks in turns.items()]

    def _reads(self, shares: dict[int, float]) -> list[MemoryRead]:
        """The memories that lie in the blocks that were read, with the attention that their part received."""
        plan = self._running.plan
        starts = [start for _, start in self._fed]
        ends = [*starts[1:], self._running.n_tokens]
        total: dict[str, float] = {}
        found: dict[str, Memory] = {}
        for block, share in shares.items():
            first = plan.n_init + block * plan.block_size
            for (turn, start), end in zip(self._fed, ends, strict=True):
                if end <= first or start >= first + plan.block_size or turn not in self._stored.chunks:
                    continue
                at = start
                for id in self._stored.chunks[turn]:
                    memory = found[id] if id in found else self._handle.get(id)
                    stop = end if id == self._stored.chunks[turn][-1] else min(end, at + memory.n_tokens)
                    overlap = min(stop, first + plan.block_size) - max(at, first)
                    if overlap > 0:
                        found[id] = memory
                        total[id] = total.get(id, 0.0) + share * overlap / plan.block_size
                    at = stop
        return [
            MemoryRead(memory=found[id], score=share, attention=share, rebuilt=False)
            for id, share in sorted(total.items(), key=lambda item: -item[1])
        ]
