"""Which turns of a session were stored: a list that is sent whole each time is neither stored nor embedded again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain

from agentmem.dialogue import in_common
from agentmem.records import Memory, Message, Role, Scope
from agentmem.store import ScopedMemories, Store
from agentmem.store.known import ever_stored, turns_behind, turns_saying
from agentmem.turns import turn_text, with_ids
from agentmem.writer import chunk_id

PREVIOUS = "previous"
"""In the ``meta`` of a turn whose id was given: the turn that it follows."""

PROBES = 32
"""Turns that are looked up at once, to find where what is stored of a dialogue ends."""

CHUNKS = 10_000
"""Chunks of the turns that a window shows: more than it has room for."""

BEGINNING = 10_000
"""Characters of a message that its first chunk lies within."""

Turns = list[tuple[Message, str]]


@dataclass
class Recogniser:
    """The turns of a session that are known to be stored.

    A turn is stored with, or after, all that came before it in its dialogue. So what is stored of a dialogue is its
    beginning, whether its memories are still there or not: what was forgotten or evicted does not come back.
    """

    store: Store
    handle: ScopedMemories
    session: str
    first_chunk: Callable[[str], str] = str
    """The beginning of a message's text that is stored as its first memory."""
    chunks: dict[str, list[str]] = field(default_factory=dict)
    """Memory ids by turn id. None are known of a turn that an earlier conversation stored, until they are asked for."""
    _unread: set[str] = field(default_factory=set)
    """Turns that are stored, and whose memory ids were not looked up."""
    _latest: tuple[list[Message], Turns] = field(default=([], []))
    """The list that was sent last, with its turns."""

    def begin_anew(self, chunks: dict[str, list[str]]) -> None:
        """Forget what was known; these turns are stored."""
        self.chunks, self._unread, self._latest = chunks, set(), ([], [])

    def add(self, memories: Iterable[Memory]) -> None:
        """Note what was stored."""
        for memory in memories:
            self.chunks.setdefault(memory.turn, []).append(memory.id)

    def unstored(self, turns: Sequence[tuple[Message, str]]) -> int:
        """Index of the first turn that is not stored."""
        at = len(turns)
        while at and turns[at - 1][1] not in self.chunks:
            at -= 1
        return at

    def memory_ids(self, turns: Sequence[tuple[Message, str]]) -> set[str]:
        """Ids of the memories that these turns became."""
        ids = [turn for _, turn in turns]
        if unread := [turn for turn in ids if turn in self._unread]:
            self._unread.difference_update(unread)
            self.add(self.handle.list(limit=CHUNKS, turns=unread))
        return set(chain.from_iterable(self.chunks.get(turn, ()) for turn in ids))

    def turns_of(self, messages: list[Message]) -> Turns:
        """A whole dialogue with the ids of its turns: those that were stored before keep theirs, given ones included.

        A reply whose id was given is known by the turn that it follows, and by its words. A list that begins in the
        middle of the dialogue, because somebody cut its front off, is known by its first two messages. What the list
        has in common with the one before it is not looked at.
        """
        same = in_common(self._latest[0], messages)
        turns = self._latest[1][:same]
        ahead = len(messages)  # as far as the ids are chained at once: no further where many were given
        while len(turns) < len(messages):
            before = turns[-1][1] if turns else self.session
            run = with_ids(messages[len(turns) : len(turns) + ahead], before)
            n = self._stored(run)
            if not turns and not n and (turns := self._cut_front(messages)):
                continue
            turns += run[:n]
            if n < len(run):
                given = self._given(run[n][0], turns[-1][1]) if turns else None
                if given is None:  # so nothing of what follows is stored
                    turns += with_ids(messages[len(turns) :], turns[-1][1] if turns else before)
                    break
                turns.append((run[n][0], given))
                self._note([given])
            ahead = 2 * (n + 1)
        self._latest = (messages, turns)
        return turns

    def _cut_front(self, messages: list[Message]) -> Turns:
        """The first turn of a list that begins in the middle of what is stored; none of another list.

        Of several turns with the first one's words, it is that behind which most of the others are stored.
        """
        if len(messages) < 2:
            return []
        first, *others = messages
        here = Scope(user=self.handle.scope.user, agent=self.handle.scope.agent, session=self.session)
        best, most = "", 0
        for turn in turns_saying(self.store, here, first.role, self.first_chunk(first.text[:BEGINNING])):
            n = self._stored(with_ids(others, turn)) or int(self._given(others[0], turn) is not None)
            if n > most:
                best, most = turn, n
        self._note([best] if best else [])
        return [(first, best)] if best else []

    def _stored(self, run: Turns) -> int:
        """How many of these turns, from the first one on, were ever stored."""
        low, high = 0, len(run)
        while low < high and run[low][1] in self.chunks:
            low += 1
        first = low
        while low < high:
            step = -(-(high - low) // PROBES)
            asked = {chunk_id(run[at][1], 0): at for at in range(high - 1, low - 1, -step)}
            found = [asked[id] for id in ever_stored(self.store, self.handle.scope, asked)]
            newest = max(found, default=low - 1)
            high = min((at for at in asked.values() if at > newest), default=high)
            low = newest + 1
        self._note(turn for _, turn in run[first:low])
        return low

    def _note(self, turns: Iterable[str]) -> None:
        """These are stored; where their memories are needed, they are looked up."""
        for turn in turns:
            if turn not in self.chunks:
                self.chunks[turn] = []
                self._unread.add(turn)

    def _given(self, message: Message, before: str) -> str | None:
        """Id of a stored reply with these words that follows the turn ``before``."""
        if message.role is not Role.ASSISTANT:
            return None
        here = Scope(user=self.handle.scope.user, agent=self.handle.scope.agent, session=self.session)
        named = turns_behind(self.store, here, PREVIOUS, before)
        words: dict[str, list[Memory]] = {}
        for memory in self.handle.list(limit=CHUNKS, turns=named) if named else ():
            words.setdefault(memory.turn, []).append(memory)
        wanted = message.text.strip()
        return next((turn for turn, chunks in words.items() if turn_text(chunks) == wanted), None)
