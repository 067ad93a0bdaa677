"""AgentMemConversationStore: Pydantic AI's conversations in the log of a ``MemoryLLM``'s store."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress

from pydantic import TypeAdapter
from pydantic_ai.conversation_store import (
    ConversationConflict,
    ConversationEntry,
    ConversationRecord,
    ConversationStore,
)
from pydantic_ai.messages import ModelMessagesTypeAdapter

from agentmem import Conflict, LogEntry, MemoryLLM
from agentmem.store import Change, Delete, Put

ROOT = "pydantic-ai"
"""First segment of all keys in the log: others may write to the same log."""
GATE = (ROOT, "forks")
"""Set whenever a history is shared or deleted, so that no two of those happen at once."""
PAGE = 1000
"""Entries and changes that the log takes at once."""
ROOM = PAGE - 2
"""Messages of one transaction, beside the record and the gate."""
AHEAD = 64
"""Messages that are read at once: each is stored with the ids of so many before it, nearest first."""

Key = tuple[str, str, str]

_RECORD = TypeAdapter(ConversationRecord)


class AgentMemConversationStore(ConversationStore):
    """Conversations of one user (and agent), for good: each message once, in the log, of which nothing is recalled.

    A conversation that someone else saved meanwhile is not saved over: ``ConversationConflict``. A save, a fork and a
    delete are each one transaction, of which that of a delete takes the messages along that no other conversation
    shares. Of more than 998 messages at once the others go in transactions of their own: before that of a save, and
    behind that of a delete.

    Args:
        llm: An open ``MemoryLLM``; close it yourself.
        user: Whose conversations. Another user's are out of reach, whatever the ``scope``.
        agent: Of which agent.
    """

    def __init__(self, llm: MemoryLLM, *, user: str, agent: str = "") -> None:
        self._log = llm.log(user=user, agent=agent)

    async def read_record(self, conversation_id: str) -> ConversationRecord | None:
        """The record of a conversation; None when there is none."""
        entry = await asyncio.to_thread(self._log.get, _record(conversation_id))
        return None if entry is None else _RECORD.validate_python(entry.value)

    async def read_records(self, *, scope: str | None = None, limit: int | None = None) -> Sequence[ConversationRecord]:
        """The records (with a scope: its own), those that were saved last in front."""
        records = await asyncio.to_thread(self._records)
        wanted = [record for record in records if scope is None or record.scope == scope]
        return sorted(wanted, key=lambda record: record.updated_at, reverse=True)[:limit]

    async def read_entry(self, entry_id: str) -> ConversationEntry:
        """A message. Raises LookupError."""
        (entry,) = await asyncio.to_thread(lambda: list(self._line(entry_id, 1)))
        return entry

    async def read_history(self, head_id: str | None, *, limit: int | None = None) -> list[ConversationEntry]:
        """The messages up to this one, or the last of them. Raises LookupError."""
        return (await asyncio.to_thread(lambda: list(self._line(head_id, limit))))[::-1]

    async def write_record(
        self,
        record: ConversationRecord,
        *,
        new_entries: Sequence[ConversationEntry] = (),
        expected_revision: str | None,
    ) -> None:
        """Save a record with its new messages. Raises ConversationConflict, and then nothing was saved."""
        await asyncio.to_thread(self._write, record, new_entries, expected_revision)

    async def delete_record(self, conversation_id: str, *, expected_revision: str) -> None:
        """Delete a record and what no other one shares of its messages. Raises ConversationConflict."""
        await asyncio.to_thread(self._delete, conversation_id, expected_revision)

    # In a thread.

    def _records(self) -> list[ConversationRecord]:
        found: list[LogEntry] = []
        while page := self._log.scan((ROOT, "record"), after=found[-1].key if found else None, limit=PAGE):
            found += page
        return [_RECORD.validate_python(entry.value) for entry in found]

    def _line(self, head_id: str | None, limit: int | None = None) -> Iterator[ConversationEntry]:
        """The messages that lead to this one, newest first."""
        ids = [] if head_id is None else [head_id]
        while ids := ids[:limit]:
            before: list[str] = []
            for id, entry in zip(ids, self._log.get_many([_entry(id) for id in ids]), strict=True):
                if entry is None:
                    raise LookupError(f"there is no message {id!r} among the conversations of this user")
                before = entry.value["before"]
                (message,) = ModelMessagesTypeAdapter.validate_python([entry.value["message"]])
                yield ConversationEntry(id=id, parent_id=before[0] if before else None, message=message)
            limit, ids = None if limit is None else limit - len(ids), before

    def _write(self, record: ConversationRecord, new: Sequence[ConversationEntry], expected: str | None) -> None:
        key, saved = _record(record.conversation_id), _RECORD.dump_python(record, mode="json")
        made = {entry.id for entry in new}
        old = sorted({one for one in (record.head_id, *(entry.parent_id for entry in new)) if one} - made)
        puts: list[Change] = []
        while True:
            there, gate, *found = self._log.get_many([key, GATE, *map(_entry, old)])
            if _revision(there) != expected or None in found:
                self._apply([Delete(put.key) for put in puts[:-ROOM] if isinstance(put, Put)])
                raise ConversationConflict(record.conversation_id)
            if not puts:
                before = {id: entry.value["before"] for id, entry in zip(old, found, strict=True) if entry}
                puts = list(_puts(new, before))
                self._apply(puts[:-ROOM])
            shared = [] if record.head_id in {None, *made} else [Put(GATE, True, expected=_number(gate))]
            with suppress(Conflict):  # whether it is one for the caller is seen when it is read again
                self._log.apply([Put(key, saved, expected=_number(there)), *puts[-ROOM:], *shared])
                return

    def _delete(self, conversation_id: str, expected: str) -> None:
        key = _record(conversation_id)
        while True:
            there, gate = self._log.get_many([key, GATE])
            if there is None or _revision(there) != expected:
                raise ConversationConflict(conversation_id)
            with suppress(Conflict):  # another conversation is shared or deleted just now
                gone = self._ids(_RECORD.validate_python(there.value))
                for record in self._records():
                    if record.conversation_id != conversation_id:
                        gone -= self._ids(record)
                entries: list[Change] = [Delete(_entry(id)) for id in sorted(gone)]
                gates: list[Change] = [Delete(key, there.revision), Put(GATE, True, expected=_number(gate))]
                self._log.apply([*gates, *entries[:ROOM]])
                return self._apply(entries[ROOM:])

    def _apply(self, changes: Sequence[Change]) -> None:
        for start in range(0, len(changes), PAGE):
            self._log.apply(changes[start : start + PAGE])

    def _ids(self, record: ConversationRecord) -> set[str]:
        """The messages of a conversation's history, and of the branches that it has left."""
        ids: set[str] = set()
        for tip in (record.head_id, *record.branches):
            with suppress(LookupError):  # another conversation is deleted just now
                ids.update(entry.id for entry in self._line(tip))
        return ids


def _record(conversation_id: str) -> Key:
    return ROOT, "record", conversation_id


def _entry(entry_id: str) -> Key:
    return ROOT, "entry", entry_id


def _puts(entries: Sequence[ConversationEntry], before: dict[str, list[str]]) -> Iterator[Put]:
    """New messages as changes. ``before`` has what leads to their parents, and then what leads to them."""
    for entry in entries:
        parent = entry.parent_id
        before[entry.id] = [] if parent is None else [parent, *before[parent]][:AHEAD]
        (message,) = json.loads(ModelMessagesTypeAdapter.dump_json([entry.message]))
        yield Put(_entry(entry.id), {"before": before[entry.id], "message": message})


def _revision(entry: LogEntry | None) -> str | None:
    return None if entry is None else str(entry.value["revision"])


def _number(entry: LogEntry | None) -> int:
    return 0 if entry is None else entry.revision
