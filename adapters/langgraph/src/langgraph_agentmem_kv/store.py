"""AgentMemStore: items are entries of the store's log; those that are indexed are memories as well."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

from langgraph.store.base import (
    BaseStore,
    GetOp,
    Item,
    ListNamespacesOp,
    Op,
    PutOp,
    Result,
    SearchItem,
    SearchOp,
    TTLConfig,
    get_text_at_path,
    validate_op_namespace,
)

from agentmem import Conflict, InvalidInput, LogEntry, Memory, MemoryLLM, NotFound

from langgraph_agentmem_kv.matching import matches, passes
from langgraph_agentmem_kv.records import ROOT, Key, change, fields_of, meta_of, place, turn_of

PAGE = 1000
"""Entries and changes that the log takes at once."""
CANDIDATES = 200
"""Memories that a search looks at: more than both of its legs return."""

ALL = 2**31 - 1

Found = tuple[LogEntry, float | None]


class AgentMemStore(BaseStore):
    """A ``BaseStore`` in the store of a ``MemoryLLM``, for the items of one user (and agent).

    What is put is in the log, for good. Unless ``index=False``, its text is also a memory of that user: ``search`` with
    a ``query`` finds it by words and by meaning, and a conversation of the same user reads it by attention.

    Args:
        llm: An open ``MemoryLLM``.
        user: Whose items. Another user's are out of reach, whatever the namespace.
        agent: Of which agent.
        fields: Paths of what is indexed where ``put`` does not say; None for an item's only value, or all as JSON.
        ttl: LangGraph's ``TTLConfig``. What has expired is not there any more, so ``omit_expired`` is always true and
            there is nothing to sweep.
    """

    supports_ttl = True

    def __init__(
        self,
        llm: MemoryLLM,
        *,
        user: str,
        agent: str = "",
        fields: Sequence[str] | None = None,
        ttl: TTLConfig | None = None,
    ) -> None:
        self._log, self._memories = llm.log(user=user, agent=agent), llm.memories(user=user, agent=agent)
        self._indexing = threading.Lock()
        self.fields, self.ttl_config = fields, ttl

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """Run operations: reads see what was there before the batch, and of several puts to a key the last counts."""
        results: list[Result] = []
        puts: dict[Key, PutOp] = {}
        for op in ops:
            validate_op_namespace(op)
            result: Result = None
            if isinstance(op, GetOp):
                result = self._get(op)
            elif isinstance(op, SearchOp):
                result = self._search(op)
            elif isinstance(op, ListNamespacesOp):
                result = self._namespaces(op)
            elif isinstance(op, PutOp):
                puts[ROOT, *op.namespace, op.key] = op
            else:
                raise ValueError(f"unknown operation {op!r}")
            results.append(result)
        for start in range(0, len(puts), PAGE):
            keys = list(puts)[start : start + PAGE]
            self._log.apply([change(key, puts[key]) for key in keys])
            self._index(keys)
        return results

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """``batch`` in a thread of its own."""
        return await asyncio.to_thread(self.batch, list(ops))

    # Reading.

    def _get(self, op: GetOp) -> Item | None:
        entry = self._log.get((ROOT, *op.namespace, op.key))
        if entry is None:
            return None
        self._touch([entry], op.refresh_ttl)
        return Item(**fields_of(entry))

    def _search(self, op: SearchOp) -> list[SearchItem]:
        page = list(itertools.islice(self._found(op), op.offset, op.offset + op.limit))
        self._touch([entry for entry, _ in page], op.refresh_ttl)
        return [SearchItem(**fields_of(entry), score=score) for entry, score in page]

    def _found(self, op: SearchOp) -> Iterator[Found]:
        """Each item once: with a query those that it finds, best first, and then all others."""
        seen: set[Any] = set()
        others: Iterator[Found] = ((entry, None) for entry in self._below(op.namespace_prefix))
        for entry, score in itertools.chain(self._alike(op), others) if op.query else others:
            if entry.key not in seen and passes(entry.value["value"], op.filter or {}):
                yield entry, score
            seen.add(entry.key)

    def _alike(self, op: SearchOp) -> Iterator[Found]:
        """Items whose memories are found, best first; with several of one item, the best counts."""
        hits = self._memories.search(str(op.query), top_k=CANDIDATES, meta=place(op.namespace_prefix))
        keys = [tuple(hit.memory.meta[ROOT]) for hit in hits]
        for entry, hit in zip(self._log.get_many(keys), hits, strict=True):
            if entry is not None:
                yield entry, hit.score

    def _namespaces(self, op: ListNamespacesOp) -> list[tuple[str, ...]]:
        every: set[tuple[str, ...]] = {fields_of(entry)["namespace"] for entry in self._below(())}
        chosen = {one for one in every if all(matches(one, condition) for condition in op.match_conditions or ())}
        return sorted({one[: op.max_depth] for one in chosen})[op.offset : op.offset + op.limit]

    def _below(self, prefix: Sequence[str]) -> Iterator[LogEntry]:
        """All items of the namespaces that begin with these segments, by namespace and key."""
        page = self._log.scan((ROOT, *prefix), limit=PAGE)
        while page:
            yield from page
            page = self._log.scan((ROOT, *prefix), after=page[-1].key, limit=PAGE) if len(page) == PAGE else []

    def _touch(self, entries: Iterable[LogEntry], refresh: bool) -> None:
        """What expires, and was read, lasts for its whole time again."""
        for entry in entries:
            if refresh and (ttl := entry.value["ttl"]):
                with suppress(Conflict):  # it was just set anew by another
                    later = datetime.now(UTC) + timedelta(minutes=ttl)
                    self._log.put(entry.key, entry.value, expected=entry.revision, expires_at=later)
                    self._keep(entry)

    # Indexing.

    def _index(self, keys: Sequence[Key]) -> None:
        """Make the memories of these items what the log says; again, if someone changes it meanwhile."""
        with self._indexing:
            before: list[LogEntry | None] = []
            while (entries := self._log.get_many(keys)) != before:
                items = [(entry, self._text(entry)) for entry in entries if entry is not None]
                texts = {turn_of(entry.key): (entry, text) for entry, text in items if text}
                there = self._indexed(keys)
                for memory in there:
                    if memory.turn not in texts or memory.meta != meta_of(*texts[memory.turn]):
                        with suppress(NotFound):  # another process has just removed it
                            self._memories.delete(memory.id)
                for turn, (entry, text) in texts.items():
                    with suppress(InvalidInput):  # another process has indexed another text: the log says so
                        self._memories.add(text, id=turn, meta=meta_of(entry, text))
                    self._keep(entry)
                before = entries

    def _indexed(self, keys: Sequence[Sequence[Any]]) -> list[Memory]:
        return self._memories.list(turns=[turn_of(key) for key in keys], limit=ALL)

    def _keep(self, entry: LogEntry) -> None:
        """The memories of an item last as long as it does."""
        ttl = entry.value["ttl"]
        for memory in self._indexed([entry.key]):
            if ttl is not None or memory.expires_at is not None:
                with suppress(NotFound):  # another process has just removed it
                    self._memories.expire(memory.id, None if ttl is None else timedelta(minutes=ttl))

    def _text(self, entry: LogEntry) -> str:
        """What of an item is indexed; nothing if it is not."""
        value, index = entry.value["value"], entry.value["index"]
        paths = (self.fields or (["*"] if len(value) == 1 else ["$"])) if index is None else index or []
        return "\n".join(text for path in paths for text in get_text_at_path(value, path)).strip()
