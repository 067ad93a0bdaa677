"""AgentMemSession: a session's items as entries of the store's log."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from agents.items import TResponseInputItem
from agents.memory import SessionSettings
from agents.memory.session_settings import resolve_session_limit

from agentmem import Conflict, LogEntry, MemoryLLM
from agentmem.store import Append, Delete

ROOT = "openai-agents"
"""First segment of all keys in the log: others may write to the same log."""
PAGE = 1000
"""Entries and changes that the log takes at once."""

Made = TypeVar("Made")


class AgentMemSession:
    """The SDK's ``Session`` in the store of a ``MemoryLLM``: what was said, word by word, and no memory.

    The items of one ``add_items`` follow each other, whoever else adds some at the same time, and are there together or
    not at all (1,000 at a time).

    Args:
        session_id: Names the dialogue among those of its user.
        llm: An open ``MemoryLLM``; close it yourself.
        user: Whose dialogue it is. Another user's is out of reach, whatever its name.
        agent: Of which agent.
        session_settings: The SDK's: ``SessionSettings(limit=...)`` for the newest items only.
    """

    session_settings: SessionSettings | None

    def __init__(
        self,
        session_id: str,
        llm: MemoryLLM,
        *,
        user: str,
        agent: str = "",
        session_settings: SessionSettings | None = None,
    ) -> None:
        self.session_id, self.session_settings = session_id, session_settings or SessionSettings()
        self._log = llm.log(user=user, agent=agent)
        self._key = (ROOT, session_id)

    async def get_items(self, limit: int | None = None) -> list[TResponseInputItem]:
        """The items in order: all, or the newest ``limit`` (that of the settings, if None; below 0, all)."""
        return await _whole(lambda: self._newest(resolve_session_limit(limit, self.session_settings)))

    async def add_items(self, items: list[TResponseInputItem]) -> None:
        """Add items behind those that are there.

        Raises:
            InvalidInput: an item is no JSON, or too long; then none of them (of 1,000 at a time) was added.
        """
        await _whole(lambda: self._add(list(items)))

    async def pop_item(self) -> TResponseInputItem | None:
        """Remove the newest item; None when there is none."""
        return await _whole(self._pop)

    async def clear_session(self) -> None:
        """Remove all items. What the model remembers of the dialogue stays; see ``MemoryLLM.memories``."""
        await _whole(lambda: self._log.clear(self._key))

    def _newest(self, limit: int | None) -> list[TResponseInputItem]:
        wanted = None if limit is None or limit < 0 else limit
        found: list[LogEntry] = []
        while wanted is None or len(found) < wanted:
            size = PAGE if wanted is None else min(PAGE, wanted - len(found))
            page = self._log.scan(self._key, before=found[-1].key if found else None, limit=size, reverse=True)
            found += page
            if len(page) < size:
                break
        return [entry.value for entry in reversed(found)]

    def _add(self, items: list[TResponseInputItem]) -> None:
        for start in range(0, len(items), PAGE):
            self._log.apply([Append(self._key, item) for item in items[start : start + PAGE]])

    def _pop(self) -> TResponseInputItem | None:
        while newest := self._log.scan(self._key, limit=1, reverse=True):
            key, behind = newest[0].key, int(newest[0].key[-1]) + 1
            try:  # expected=0: nothing was added behind it meanwhile
                gone, _ = self._log.apply([Delete(key), Delete((*self._key, behind), expected=0)])
            except Conflict:
                continue
            if gone is not None:  # else another was quicker
                item: TResponseInputItem = gone.value
                return item
        return None


async def _whole(work: Callable[[], Made]) -> Made:
    """Run in a thread. Who is cancelled waits until it is done, so that nothing is written behind their back."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    return task.result()
