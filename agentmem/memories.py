"""``conversation.memories``: what is remembered in one scope, to look at, add to, correct, pin, prune and forget."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

from agentmem.chunking import chunk_text
from agentmem.errors import InvalidInput
from agentmem.records import Activity, Event, Forgotten, Hit, Memory, PruneReport, Role, Scope, Stats, VerifyReport
from agentmem.store import ScopedMemories, Store
from agentmem.store.activity import activity
from agentmem.store.inputs import check_age
from agentmem.store.paging import page
from agentmem.store.rows import Filters
from agentmem.text import check_text
from agentmem.turns import in_order
from agentmem.writer import Turn, Writer

MOST_CHUNKS = 2**31 - 1
"""Of one turn: as many as there are."""


class Memories:
    """The memories of one scope. No call reaches beyond it; an id of another scope is answered like an unknown one."""

    def __init__(self, store: Store, handle: ScopedMemories, writer: Writer):
        self._store, self._handle, self._writer = store, handle, writer

    @property
    def scope(self) -> Scope:
        """Whose memories these are."""
        return self._handle.scope

    def add(
        self,
        text: str,
        *,
        id: str | None = None,
        role: Role | str = Role.USER,
        session: str | None = None,
        tags: Sequence[str] = (),
        meta: dict[str, Any] | None = None,
        ttl: timedelta | str | None = None,
    ) -> list[Memory]:
        """Remember a text: one memory per chunk, in one transaction. Returns after the commit; KV follows.

        With an ``id`` of your own, adding the same text again changes nothing. It is the turn's, and the first chunk's
        memory has it too: ``get(id)`` finds a text of one chunk, ``list(turns=[id])`` all chunks of a longer one, those
        behind the first being called ``<id>-1`` and so on.

        With ``ttl`` (a timedelta, or "12h", "30d", "8w") it is forgotten after so long, pinned or not.

        Raises InvalidInput for text that cannot be stored, or an id that another text has; and StoreError when nothing
        was stored.
        """
        turn = Turn(
            Role(role),
            check_text(text),
            session,
            uuid4().hex if id is None else id,
            tags=tuple(tags),
            meta=meta or {},
            expires_at=_expiry(ttl),
            named=id is not None,
        )
        return (self._same(turn) if turn.named else None) or self._writer.write(self._handle, [turn])

    def _same(self, turn: Turn) -> list[Memory] | None:
        """What is stored of this turn already, if that is all of it. Raises InvalidInput if it is longer than this."""
        there = in_order(self._handle.list(turns=[turn.id], limit=MOST_CHUNKS))
        if not there:
            return None
        texts = [chunk.text for chunk in chunk_text(turn.text, self._writer.spans)]
        if there[-1].chunk_no >= len(texts):
            raise InvalidInput(f"id {turn.id!r} is taken by a longer text; delete that one first, or choose another id")
        whole = [memory.text for memory in there] == texts and there[0].scope.session == turn.session
        return there if whole else None  # the store refuses what differs, and adds what was evicted

    def search(
        self,
        text: str,
        *,
        top_k: int = 8,
        threshold: float | None = None,
        explain: bool = False,
        exclude: Iterable[str] = (),
        **filters: Any,
    ) -> list[Hit]:
        """Hybrid search; ``filters`` as in ``list``. ``threshold`` None: the best top_k, whatever their score.

        ``exclude``: what is not wanted, since the prompt has it already, say. Ids of memories, or of texts as given to
        ``add``, each of which stands for all its chunks.
        """
        check_text(text, "query")
        vector = self._writer.embedder.embed([text])[0]
        return self._handle.search(
            text, vector, top_k=top_k, threshold=threshold, explain=explain, exclude=exclude, **filters
        )

    def list(self, *, sort: str = "-created_at", limit: int = 50, offset: int = 0, **filters: Any) -> list[Memory]:
        """Memories in order.

        Sort by created_at, last_used, uses, attention, frequency, n_tokens or kv_bytes; '-' for descending.

        Filters: role, tags, under, meta, tier, session, since, until, pinned, min_uses, turns.
        """
        return self._handle.list(sort=sort, limit=limit, offset=offset, **filters)

    def page(
        self, *, sort: str = "-created_at", limit: int = 50, cursor: str | None = None, **filters: Any
    ) -> tuple[Sequence[Memory], str | None]:
        """As ``list``, page by page: some memories, and the cursor of the page behind them (None: there is none).

        What is written or deleted meanwhile neither repeats nor hides a memory; one whose own place in the order
        changes (it was just used, say) may be seen twice or missed. Raises InvalidInput for a bad cursor.
        """
        wanted = cast(Filters, filters)
        return page(self._store, self.scope, sort=sort, limit=limit, cursor=cursor, filters=wanted)

    def get(self, id: str) -> Memory:
        """One memory. Raises NotFound."""
        return self._handle.get(id)

    def update(
        self, id: str, *, text: str | None = None, tags: Sequence[str] | None = None, meta: dict[str, Any] | None = None
    ) -> Memory:
        """Change a memory. A new text is embedded, indexed and encoded anew; nothing of the old one remains."""
        if text is None:
            return self._handle.update(id, tags=tags, meta=meta)
        chunks = chunk_text(text, self._writer.spans)
        if len(chunks) != 1:
            raise InvalidInput(
                f"the new text fills {len(chunks)} chunks, and a memory is one: delete this memory and add the text"
            )
        memory = self._handle.update(
            id,
            text=text,
            embedding=self._writer.embedder.embed([text])[0],
            n_tokens=chunks[0].n_tokens,
            tags=tags,
            meta=meta,
        )
        self._writer.schedule(self._handle, [memory])
        return memory

    def pin(self, id: str, pinned: bool = True) -> Memory:
        """Pinned memories are never evicted."""
        return self._handle.pin(id, pinned)

    def expire(self, id: str, ttl: timedelta | str | None) -> Memory:
        """Forget a memory so long from now (a timedelta, or "12h", "30d", "8w"); None: keep it. Raises NotFound."""
        return self._handle.expire(id, _expiry(ttl))

    def delete(self, id: str | Sequence[str]) -> Forgotten:
        """Forget: nothing of it remains in any table, index or file of the store. Raises NotFound."""
        return self._handle.delete(id)

    def prune(
        self,
        *,
        max_bytes: int | None = None,
        max_memories: int | None = None,
        unused_for: str | timedelta | None = None,
        dry_run: bool = False,
    ) -> PruneReport:
        """Evict by usage frequency until the limits hold; with ``dry_run`` only say what would go, and why."""
        return self._handle.prune(
            max_bytes=max_bytes, max_memories=max_memories, unused_for=unused_for, dry_run=dry_run
        )

    def history(self, id: str) -> Sequence[Event]:
        """What happened to a memory, deletion included."""
        return self._handle.history(id)

    def stats(self) -> Stats:
        """The scope in numbers."""
        return self._handle.stats()

    def count(self, **filters: Any) -> int:
        """How many memories pass the filters, which are those of ``list``."""
        return self._handle.count(**cast(Filters, filters))

    def activity(self) -> Activity:
        """What was added, deleted and evicted over time, from the audit, and how uses are spread over the memories."""
        return activity(self._store, self.scope)

    def export(self, path: str | Path, *, kv: bool = False) -> int:
        """Write the scope's memories to a JSONL file. Returns how many.

        With ``kv`` their KV, a cache of the text, goes into a file of the same name that ends in ``.safetensors``.
        """
        return self._handle.export(path, kv=kv)

    def load(self, path: str | Path) -> int:
        """Read an export into this scope, all of it or (if a line is bad) nothing; idempotent. Returns how many.

        KV that was exported with it is attached. Take that only from whom you trust: a model attends to it, not to the
        text.
        """
        new = self._handle.load(path)
        self._writer.embed_pending(self._store)  # an export of another embedder comes without vectors of this one
        return new

    def verify(self, *, repair: bool = False) -> VerifyReport:
        """Check the whole store: rows, indexes, payloads, files."""
        return self._store.verify(repair=repair)

    def __len__(self) -> int:
        return self._handle.count()


def _expiry(ttl: timedelta | str | None) -> datetime | None:
    """When something expires that is to last for ``ttl`` from now."""
    if ttl is None:
        return None
    try:
        return datetime.now(UTC) + timedelta(microseconds=check_age(ttl, "ttl"))
    except OverflowError as error:
        raise InvalidInput(f"ttl of {ttl!r} goes beyond the calendar; leave it out to keep the memory") from error
