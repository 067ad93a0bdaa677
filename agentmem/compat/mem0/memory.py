"""Memory: mem0's calls and results, over the memories of a ``MemoryLLM``."""

from __future__ import annotations

import heapq
import inspect
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from itertools import groupby, islice
from types import TracebackType
from typing import Any
from uuid import uuid4

from agentmem.chunking import chunk_text
from agentmem.compat.mem0 import shapes
from agentmem.compat.mem0.filters import IDENTITY, Wanted, parse, passes, whose
from agentmem.compat.mem0.finding import PAGE, chunks_of, joined, newest
from agentmem.errors import InvalidInput, NotFound
from agentmem.llm import MemoryLLM
from agentmem.memories import MOST_CHUNKS, Memories
from agentmem.records import Hit, Scope
from agentmem.records import Memory as Chunk
from agentmem.store.inputs import check_meta
from agentmem.store.known import homes
from agentmem.text import check_text
from agentmem.writer import Turn, chunk_id

MOST_TURNS = 10_000
"""Turns that one search is narrowed to."""
PROCEDURAL = "procedural_memory"
_UNSET: Any = object()


class Memory:
    """mem0's ``Memory``: the same calls, the same results, kept in a ``MemoryLLM`` and read by its attention.

    ``user_id``, ``agent_id`` and ``run_id`` are the user, the agent and the session. A memory is what was added, word
    by word: nothing is extracted, with ``infer`` or without. Its id is a turn's, so what a conversation remembered is
    found here, too.

    Args:
        llm: An open ``MemoryLLM``, which stays yours to close; None opens one with the bundled model on ``memory.db``.
    """

    def __init__(self, llm: MemoryLLM | None = None) -> None:
        self._owned = llm is None
        self.llm = MemoryLLM() if llm is None else llm

    @classmethod
    def from_config(cls, config_dict: dict[str, Any]) -> Memory:
        """A memory of its own ``MemoryLLM``, whose arguments ``config_dict`` has. Raises InvalidInput for others."""
        known = inspect.signature(MemoryLLM).parameters
        if unknown := config_dict.keys() - known.keys():
            raise InvalidInput(f"unknown settings {sorted(unknown)}; MemoryLLM has {', '.join(known)}")
        made = cls(MemoryLLM(**config_dict))
        made._owned = True
        return made

    def add(
        self,
        messages: str | dict[str, Any] | list[dict[str, Any]],
        *,
        user_id: str | None = None,
        agent_id: str | None = None,
        run_id: str | None = None,
        metadata: dict[str, Any] | None = None,
        timestamp: Any | None = None,
        expiration_date: Any | None = None,
        infer: bool = True,
        memory_type: str | None = None,
        prompt: str | None = None,
    ) -> dict[str, Any]:
        """Remember each message as it is, all in one transaction; system messages are left out.

        ``infer`` and ``prompt`` change nothing: no model extracts anything. Raises InvalidInput without a ``user_id``,
        and for what cannot be stored; then nothing was.
        """
        if timestamp is not None:
            raise InvalidInput("timestamp is not supported, as in mem0's own library: leave it out")
        if memory_type not in (None, PROCEDURAL):
            raise InvalidInput(f"memory_type is {PROCEDURAL!r} or left out, not {memory_type!r}")
        user, agent, run = whose(user_id, agent_id, run_id)
        day = shapes.to_date(expiration_date)
        meta = shapes.to_meta(metadata)
        meta |= {"expiration_date": day} if day else {}
        meta |= {"memory_type": memory_type} if memory_type else {}
        said = shapes.to_messages(messages)
        turns = [
            Turn(
                message.role,
                message.text,
                run,
                str(uuid4()),
                meta=meta | ({"actor_id": message.name} if message.name else {}),
                expires_at=shapes.end_of(day) if day else None,
                named=True,
            )
            for message in said
        ]
        handle = self.llm.store.scope(self._memories(user, agent or "").scope)
        self.llm.writer.write(handle, turns)
        return {
            "results": [
                {
                    "id": turn.id,
                    "memory": turn.text,
                    "event": "ADD",
                    "actor_id": turn.meta.get("actor_id"),
                    "role": str(turn.role),
                }
                for turn in turns
            ]
        }

    def search(
        self,
        query: str,
        *,
        top_k: int = 20,
        filters: dict[str, Any] | None = None,
        threshold: float = 0.1,
        rerank: bool = False,
        explain: bool = False,
        reference_date: Any | None = None,
        show_expired: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Hybrid search, best first. ``score`` is from 0 to 1: a memory that does not stand out has about 0.5.

        ``rerank`` and ``show_expired`` change nothing: there is no reranker, and what has expired is gone.
        """
        if reference_date is not None:
            raise InvalidInput("reference_date is not supported, as in mem0's own library: leave it out")
        _refuse(kwargs, "search")
        limit, least = _top(top_k), 0.1 if threshold is None else threshold
        if isinstance(least, bool) or not isinstance(least, int | float) or not 0 <= least <= 1:
            raise InvalidInput(f"threshold must be a number from 0 to 1, not {threshold!r}")
        query = check_text(query, "query").strip()
        wanted = parse(filters)
        searches = [hits for memories in self._several(wanted) for hits in self._searches(memories, wanted, query)]
        best: dict[tuple[Scope, str], Hit] = {}  # of a memory of several chunks, the best
        for hit in joined([hits for hits in searches if hits], self.llm.store.embedder):
            best.setdefault((hit.memory.scope, hit.memory.turn), hit)
        results = []
        for (scope, turn), hit in islice(best.items(), limit):
            score, chunks = shapes.score_of(hit.score), chunks_of(self._memories(scope.user, scope.agent), turn)
            if score >= least and chunks:  # another may have deleted it meanwhile
                more = {"score_details": shapes.details(hit.explain)} if explain else {}
                results.append(shapes.item(chunks, score=score) | more)
        return {"results": results}

    def get(self, memory_id: str) -> dict[str, Any] | None:
        """One memory; None when there is none. Raises InvalidInput when several users have one of that id."""
        _, chunks = self._find(memory_id)
        return shapes.item(chunks, score=None) if chunks else None

    def get_all(
        self, *, filters: dict[str, Any] | None = None, top_k: int = 20, show_expired: bool = False, **kwargs: Any
    ) -> dict[str, Any]:
        """The newest ``top_k`` memories that pass the filters, newest first."""
        _refuse(kwargs, "get_all")
        limit, wanted = _top(top_k), parse(filters)
        every = [self._turns(memories, wanted) for memories in self._several(wanted)]
        ordered = heapq.merge(*every, key=lambda chunks: chunks[0].created_at, reverse=True)
        return {"results": [shapes.item(chunks) for chunks in islice(ordered, limit)]}

    def update(
        self,
        memory_id: str,
        text: str | None = None,
        metadata: dict[str, Any] | None = None,
        expiration_date: Any = _UNSET,
        data: str | None = None,
    ) -> dict[str, str]:
        """Change a memory, which keeps its id; ``metadata`` is added to what it has. ``data`` is ``text``.

        A text that fills several chunks, or replaces such a one, is deleted and then written, in two transactions.
        Raises InvalidInput for a memory that is not there.
        """
        text = data if text is None else text
        if text is None and metadata is None and expiration_date is _UNSET:
            raise InvalidInput("there is nothing to update: give text, metadata or expiration_date")
        if text is not None:
            check_text(text)
        memories, chunks = self._existing(memory_id)
        meta = chunks[0].meta | shapes.to_meta(metadata) | {"updated_at": datetime.now(UTC).isoformat()}
        expires = chunks[0].expires_at
        if expiration_date is not _UNSET:
            day = shapes.to_date(expiration_date)
            expires = shapes.end_of(day) if day else None
            meta |= {"expiration_date": day} if day else {}
            meta = meta if day else {key: value for key, value in meta.items() if key != "expiration_date"}
        meta = check_meta(meta)  # before anything is deleted
        one = len(chunks) == 1 and (text is None or self._fits(text))
        if one or text is None:
            for chunk in chunks:
                memories.update(chunk.id, text=text, meta=meta)
                if expires != chunk.expires_at:
                    memories.expire(chunk.id, None if expires is None else expires - datetime.now(UTC))
        else:
            self._replace(memories, chunks, text, meta, expires)
        return {"message": "Memory updated successfully!"}

    def delete(self, memory_id: str) -> dict[str, str]:
        """Forget a memory: nothing of its text remains. Raises InvalidInput when it is not there."""
        memories, chunks = self._existing(memory_id)
        memories.delete([chunk.id for chunk in chunks])
        return {"message": "Memory deleted successfully!"}

    def delete_all(
        self, user_id: str | None = None, agent_id: str | None = None, run_id: str | None = None
    ) -> dict[str, str]:
        """Forget all memories of a user, of one of their agents, or of one run; nobody else's.

        Raises InvalidInput without a ``user_id``; for everything there is ``reset``.
        """
        user, agent, run = whose(user_id, agent_id, run_id)
        for scope in self._scopes(user, agent):
            self._forget(self._memories(scope.user, scope.agent), {} if run is None else {"session": run})
        return {"message": "Memories deleted successfully!"}

    def history(self, memory_id: str) -> list[dict[str, Any]]:
        """What happened to a memory, deletion included: events and times, and the text that it has now, no older one.

        Empty for a memory that never was.
        """
        rows: list[dict[str, Any]] = []
        for memories in self._homes(memory_id):
            there = chunks_of(memories, memory_id)
            for id in (memory_id, chunk_id(memory_id, 0)):
                try:
                    events = memories.history(id)
                except NotFound:
                    continue
                rows += shapes.history(memory_id, events, shapes.payload(there) if there else None)
        return rows

    def reset(self) -> None:
        """Forget all memories of everybody in the store. Its log stays."""
        for scope in self.llm.store.spaces():
            self._forget(self._memories(scope.user, scope.agent), {})

    def close(self) -> None:
        """Close the ``MemoryLLM``, if it was opened here."""
        if self._owned:
            self.llm.close()

    def __enter__(self) -> Memory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ------------------------------------------------------------------------------------------------ whose memories

    def _memories(self, user: str, agent: str) -> Memories:
        return self.llm.memories(user=user, agent=agent)

    def _scopes(self, user: str, agent: str | None) -> list[Scope]:
        """Of one agent, or of all that the user has memories of."""
        return self.llm.store.spaces(user) if agent is None else [self._memories(user, agent).scope]

    def _several(self, wanted: Wanted) -> list[Memories]:
        return [self._memories(scope.user, scope.agent) for scope in self._scopes(wanted.user, wanted.agent)]

    def _homes(self, memory_id: str) -> list[Memories]:
        scopes = homes(self.llm.store, [memory_id, chunk_id(memory_id, 0)])
        return [self._memories(scope.user, scope.agent) for scope in scopes]

    def _find(self, memory_id: str) -> tuple[Memories | None, list[Chunk]]:
        """Where a memory is, and its chunks."""
        found = [
            (memories, chunks) for memories in self._homes(memory_id) if (chunks := chunks_of(memories, memory_id))
        ]
        if len(found) > 1:
            raise InvalidInput(f"several users or agents have a memory {memory_id!r}; see MemoryLLM.memories(user=...)")
        return found[0] if found else (None, [])

    def _existing(self, memory_id: str) -> tuple[Memories, list[Chunk]]:
        memories, chunks = self._find(memory_id)
        if memories is None:
            raise InvalidInput(f"there is no memory {memory_id!r}")
        return memories, chunks

    # ------------------------------------------------------------------------------------------------ reading, writing

    def _turns(self, memories: Memories, wanted: Wanted) -> Iterator[list[Chunk]]:
        """The memories of a scope that are wanted, newest first, each as its chunks."""
        for _, group in groupby(newest(memories, wanted.stored), key=lambda chunk: chunk.turn):
            chunks = list(group)
            if passes(shapes.payload(chunks), wanted.rest):
                yield chunks

    def _searches(self, memories: Memories, wanted: Wanted, query: str) -> Iterator[list[Hit]]:
        """What searches of a scope find among those that are wanted; mostly it is one."""
        if not wanted.rest:
            yield memories.search(query, top_k=MOST_CHUNKS, explain=True, **wanted.stored)
            return
        turns = (chunks[0].turn for chunks in self._turns(memories, wanted))
        while some := list(islice(turns, MOST_TURNS)):
            yield memories.search(query, top_k=MOST_CHUNKS, explain=True, turns=some)

    def _fits(self, text: str) -> bool:
        """Whether a text is one chunk."""
        return len(chunk_text(text, self.llm.writer.spans)) == 1

    def _replace(
        self, memories: Memories, chunks: list[Chunk], text: str, meta: dict[str, Any], expires: datetime | None
    ) -> None:
        first = chunks[0]
        memories.delete([chunk.id for chunk in chunks])
        turn = Turn(
            first.role,
            text,
            first.scope.session,
            first.turn,
            first.created_at,
            first.tags,
            meta,
            expires,
            named=first.id == first.turn,
        )
        self.llm.writer.write(self.llm.store.scope(memories.scope), [turn])

    def _forget(self, memories: Memories, filters: Mapping[str, Any]) -> None:
        """Delete page by page; what another deletes meanwhile is gone just as well."""
        while page := memories.list(sort="created_at", limit=PAGE, **filters):
            try:
                memories.delete([chunk.id for chunk in page])
            except NotFound:
                continue


def _top(top_k: object) -> int:
    if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 0:
        raise InvalidInput(f"top_k must be a whole number from 0, not {top_k!r}")
    return top_k


def _refuse(options: Iterable[str], call: str) -> None:
    """mem0 takes any option and hears none."""
    if ids := sorted(set(options) & set(IDENTITY)):
        raise InvalidInput(f"{call}() takes {', '.join(ids)} in filters: filters={{'user_id': 'ada'}}")
    if other := sorted(options):
        raise InvalidInput(f"{call}() has no option {', '.join(other)}")
