"""AgentMemMemoryService: ADK's memory service on agentmem."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from google.adk.events.event import Event
from google.adk.memory.base_memory_service import BaseMemoryService, SearchMemoryResponse
from google.adk.memory.memory_entry import MemoryEntry
from google.adk.sessions.session import Session
from google.genai import types

from agentmem import Hit, Memories, MemoryLLM, NotFound, Role

AUTHOR, SAID_AT = "author", "timestamp"
"""Where a memory's ``meta`` has what ADK's entry has by these names."""
MANY = 2**31 - 1
"""Chunks of an event: as many as there are."""


class AgentMemMemoryService(BaseMemoryService):
    """What was said in sessions, kept for good: by user and app, found by meaning and by words.

    Adding a session again adds what is new in it; what was deleted does not come back with it. ``custom_metadata`` goes
    into the memories' ``meta``, but for ``ttl`` ("12h", "30d"), after which they are forgotten.

    Args:
        llm: An open ``MemoryLLM``; close it yourself.
        k: Most memories of a search.
        threshold: Least score (sum of z-scores) of what is found; None for the best ``k``.
    """

    def __init__(self, llm: MemoryLLM, *, k: int = 8, threshold: float | None = 1.0) -> None:
        self._llm, self._k, self._threshold = llm, k, threshold

    async def add_session_to_memory(self, session: Session) -> None:
        """Remember what was said in a session."""
        await self.add_events_to_memory(
            app_name=session.app_name, user_id=session.user_id, events=session.events, session_id=session.id
        )

    async def add_events_to_memory(
        self,
        *,
        app_name: str,
        user_id: str,
        events: Sequence[Event],
        session_id: str | None = None,
        custom_metadata: Mapping[str, object] | None = None,
    ) -> None:
        """Remember what was said in some events."""
        entries = [
            MemoryEntry(
                id=hashlib.sha256(f"{session_id}\x00{event.id}".encode()).hexdigest()[:32],
                content=event.content,
                author=event.author,
                timestamp=datetime.fromtimestamp(event.timestamp, UTC).isoformat(),
            )
            for event in events
            if event.content and not event.partial
        ]
        await asyncio.to_thread(self._keep, app_name, user_id, entries, custom_metadata, session_id, once=True)

    async def add_memory(
        self,
        *,
        app_name: str,
        user_id: str,
        memories: Sequence[MemoryEntry],
        custom_metadata: Mapping[str, object] | None = None,
    ) -> None:
        """Remember entries as they are. One with an id that is there already must have the same text."""
        await asyncio.to_thread(self._keep, app_name, user_id, memories, custom_metadata)

    def _keep(
        self,
        app_name: str,
        user_id: str,
        entries: Sequence[MemoryEntry],
        more: Mapping[str, object] | None,
        session: str | None = None,
        once: bool = False,
    ) -> None:
        memories = self._llm.memories(user=user_id, agent=app_name)
        for entry in entries:
            text = _words(entry.content)
            if not text.strip() or (once and _ever_there(memories, entry.id)):
                continue
            meta: dict[str, Any] = {**entry.custom_metadata, **(more or {})}
            ttl = meta.pop("ttl", None)
            meta |= {key: value for key in (AUTHOR, SAID_AT) if (value := getattr(entry, key)) is not None}
            role = Role.USER if entry.author in (None, "user") else Role.ASSISTANT
            memories.add(text, id=entry.id, role=role, session=session, meta=meta, ttl=ttl)

    async def search_memory(self, *, app_name: str, user_id: str, query: str) -> SearchMemoryResponse:
        """What a question recalls, best first."""
        return SearchMemoryResponse(memories=await asyncio.to_thread(self._found, app_name, user_id, query))

    def _found(self, app_name: str, user_id: str, query: str) -> list[MemoryEntry]:
        if not query.strip():
            return []
        hits = self._llm.memories(user=user_id, agent=app_name).search(query, top_k=self._k, threshold=self._threshold)
        return [_entry(hit) for hit in hits]

    async def delete_memory(self, *, app_name: str, user_id: str, memory_id: str | None = None) -> None:
        """Forget what an entry of a search came from, whole. What is not there is passed over."""
        if memory_id:
            await asyncio.to_thread(self._forget, app_name, user_id, memory_id)

    def _forget(self, app_name: str, user_id: str, memory_id: str) -> None:
        memories = self._llm.memories(user=user_id, agent=app_name)
        try:
            turn = memories.get(memory_id).turn
        except NotFound:
            return
        memories.delete([memory.id for memory in memories.list(turns=[turn], limit=MANY)])


def _ever_there(memories: Memories, id: str | None) -> bool:
    """Also what was forgotten, or evicted, since."""
    try:
        return id is not None and bool(memories.history(id))
    except NotFound:
        return False


def _words(content: types.Content) -> str:
    return "\n".join(part.text for part in content.parts or [] if part.text and not part.thought)


def _entry(hit: Hit) -> MemoryEntry:
    memory = hit.memory
    meta = dict(memory.meta)
    return MemoryEntry(
        id=memory.id,
        content=types.Content(
            role="user" if memory.role is Role.USER else "model", parts=[types.Part(text=memory.text)]
        ),
        author=meta.pop(AUTHOR, str(memory.role)),
        timestamp=meta.pop(SAID_AT, memory.created_at.isoformat()),
        custom_metadata=meta | {"score": hit.score},
    )
