"""The handle through which the memories of one scope are written and read. Each method is one unit of work."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import sqlalchemy as sa

from agentmem.errors import InvalidInput, NotFound
from agentmem.records import Event, Forgotten, Hit, Memory, PruneReport, Scope, Stats
from agentmem.store import changing, expiry, kv, search, stream_opening, tidying, transfer, writing
from agentmem.store.changing import embedding_dim
from agentmem.store.hot import HotTier
from agentmem.store.inputs import (
    NewMemory,
    Vector,
    check_age,
    check_int,
    check_name,
    check_new,
    check_share,
    check_vector,
    from_us,
    now_us,
)
from agentmem.store.payloads import LoadedKV
from agentmem.store.places import AnyRow, Place, find_place, space_of
from agentmem.store.retry import retried
from agentmem.store.rows import (
    Filters,
    filter_conditions,
    keys_of,
    keys_under,
    memories_of,
    order_by,
    select_rows,
    to_memories,
)
from agentmem.store.schema import EventRow, MemoryRow
from agentmem.store.stats import count_up
from agentmem.store.streams import StoredStream
from agentmem.text import check_characters

if TYPE_CHECKING:
    from agentmem.store.store import Store

MAX_QUERY = 1_000_000
"""Longest query, in characters."""

# Spelled here because inside the class ``list`` is a method.
Hits = list[Hit]
Events = list[Event]
Ids = list[str]


class ScopedMemories:
    """Memories of one scope. An id of another scope is answered like one that never was: NotFound."""

    def __init__(self, store: Store, scope: Scope):
        self._store = store
        self.scope = scope
        self.patience = store.patience  # for retry.py

    # Writing.

    @retried
    def add(self, memories: Sequence[NewMemory]) -> list[Memory]:
        """Store chunks in one transaction: text, vectors, indexes and counters commit together or not at all.

        Adding what is there already (the same id, or the same turn and chunk number, with the same text) changes
        nothing and returns what is there.

        Returns:
            The memories in the order given, after the commit.

        Raises:
            InvalidInput: one of them cannot be stored; then none was.
            StoreFull: no room; rolled back.
        """
        if not isinstance(memories, Sequence) or isinstance(memories, str):
            raise InvalidInput(f"add takes a list of NewMemory, not {type(memories).__name__}")
        now = now_us()
        items = [check_new(memory, self._store.embedder, self.scope.session, now) for memory in memories]
        if not items:
            return []
        with self._store.write() as connection:
            place = find_place(connection, self.scope)
            expired = expiry.make_way(connection, place.space_id, items, now) if place else []
            space_id, keys, _ = writing.add(connection, self.scope, items, self._store.model_id, now)
            added = self._by_keys(connection, keys, now)
            report = tidying.enforce(connection, self._store.policy, space_id, now)
        if report.pruned:
            self._store.drain_trash()
        if expired:
            self._store.erase(expired, wait=0.0)
        self._store.finish_erasure(wait=0.0)
        return [added[key] for key in keys]

    @retried
    def update(
        self,
        id: str,
        *,
        text: str | None = None,
        embedding: Vector | None = None,
        n_tokens: int | None = None,
        tags: Sequence[str] | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> Memory:
        """Change a memory. A new text drops KV, vectors and the session's stream, and is indexed anew.

        A new text comes with its ``n_tokens``, and with its ``embedding`` or none (then it waits in
        ``Store.pending_embeddings``).

        Raises:
            NotFound: no such memory in this scope.
            InvalidInput: a value that cannot be stored; nothing was changed.
        """
        return changing.update(self._store, self.scope, id, text, embedding, n_tokens, tags, meta)

    @retried
    def pin(self, id: str, pinned: bool = True) -> Memory:
        """Pin (never evicted) or unpin a memory.

        Raises:
            NotFound: no such memory in this scope.
        """
        return changing.pin(self._store, self.scope, id, pinned)

    @retried
    def expire(self, id: str, at: datetime | None) -> Memory:
        """Set from when on a memory is not there any more; None: never.

        Raises:
            NotFound: no such memory in this scope.
            InvalidInput: no datetime with a time zone, or one that has passed; nothing was changed.
        """
        return changing.expire(self._store, self.scope, id, at)

    @retried
    def delete(self, ids: str | Iterable[str]) -> Forgotten:
        """Forget memories, provably: rows, vectors, index, neighbours' keys, KV, their session's stream, log pages.

        The audit keeps their ids, the time and that they were deleted; never content.

        Raises:
            NotFound: one of the ids is not in this scope; then nothing was deleted.
        """
        wanted = [ids] if isinstance(ids, str) else list(ids)
        wanted = list(dict.fromkeys(check_name(one, "id") for one in wanted))
        if not wanted:
            return Forgotten(ids=(), complete=True)
        with self._store.write() as connection:
            place = find_place(connection, self.scope)
            rows = keys_of(connection, place, wanted) if place else {}
            absent = [one for one in wanted if one not in rows]
            if absent or place is None:
                raise NotFound(f"no memory {absent[0]!r} in this scope ({len(absent)} of {len(wanted)} not found)")
            self._forget(connection, place, list(rows.values()), "delete")
        self._cool(wanted)
        complete = self._store.erase([(row.turn_id, row.id) for row in rows.values()])
        return Forgotten(ids=tuple(wanted), complete=complete)

    @retried
    def forget_scope(self) -> Forgotten:
        """Forget everything of this scope: its memories and, unlike ``delete``, its name, sessions and audit too."""
        with self._store.write() as connection:
            place = find_place(connection, self.scope)
            if place is None:
                return Forgotten(ids=(), complete=True)
            columns = (MemoryRow.id, MemoryRow.uid, MemoryRow.turn_id, MemoryRow.session_id)
            rows = connection.execute(sa.select(*columns).where(*place.rows())).all()
            self._forget(connection, place, list(rows), "forget_scope")
            writing.forget_place(connection, place)
        self._cool([row.uid for row in rows])
        complete = self._store.erase([(row.turn_id, row.id) for row in rows])
        return Forgotten(ids=tuple(row.uid for row in rows), complete=complete)

    @retried
    def prune(
        self,
        *,
        max_bytes: int | None = None,
        max_memories: int | None = None,
        unused_for: timedelta | str | None = None,
        dry_run: bool = False,
    ) -> PruneReport:
        """Bring this scope within limits, least used first; the report says who went and why.

        Args:
            max_bytes: most bytes of KV to keep (KV goes, text stays).
            max_memories: most memories to keep.
            unused_for: delete what was neither written nor read for so long; a timedelta, or "12h", "30d", "8w".
            dry_run: only say what would go.
        """
        if max_bytes is not None:
            check_int(max_bytes, "max_bytes", 0, 2**62)
        if max_memories is not None:
            check_int(max_memories, "max_memories", 0)
        unused_us = None if unused_for is None else check_age(unused_for)
        if dry_run:
            self._store.flush_uses()
        # A look at what would go keeps no writer waiting.
        with self._store.database.read() if dry_run else self._store.write() as connection:
            place = find_place(connection, self.scope)
            if place is None:
                return PruneReport(dry_run=dry_run, pruned=(), freed_kv_bytes=0, kept=0)
            report = tidying.prune(
                connection,
                place,
                self._store.policy,
                now_us(),
                max_bytes=max_bytes,
                max_memories=max_memories,
                unused_us=unused_us,
                dry_run=dry_run,
            )
        if not dry_run:
            self._store.drain_trash()
        return report

    def record_uses(self, uses: Iterable[tuple[str, float]], *, turn: str) -> None:
        """Note that memories were read in a turn: (id, attention share). Buffered; a turn counts once per memory."""
        check_name(turn, "turn")
        checked = [(check_name(id_, "id"), check_share(share)) for id_, share in uses]
        self._store.uses.record(((self.scope, id_, turn), share) for id_, share in checked)
        if self._store.uses.due:
            self._store.flush_uses()

    # Reading.

    @retried
    def get(self, id: str) -> Memory:
        """One memory.

        Raises:
            NotFound: no such memory in this scope.
        """
        check_name(id, "id")
        self._store.flush_uses()
        with self._store.database.read() as connection:
            _, row = changing.row_of(connection, self.scope, id)
            return self._by_keys(connection, [row.id], now_us())[row.id]

    @retried
    def list(
        self, *, sort: str = "-created_at", limit: int = 50, offset: int = 0, **filters: Unpack[Filters]
    ) -> list[Memory]:
        """Memories that pass the filters.

        Args:
            sort: created_at, last_used, uses, attention, frequency, n_tokens or kv_bytes; ``-`` in front for
                largest first.
            limit: most to return.
            offset: how many to skip.
            filters: role, tags, under, meta, tier, session, since, until, pinned, min_uses, turns.
        """
        check_int(limit, "limit", 0)
        check_int(offset, "offset", 0)
        now, half_life_us = now_us(), self._store.policy.half_life_us
        order, conditions = order_by(sort, now, half_life_us), filter_conditions(filters)
        self._store.flush_uses()
        with self._store.database.read() as connection:
            place = find_place(connection, self.scope)
            if place is None:
                return []
            query = select_rows().where(*place.conditions(), *conditions).order_by(*order).limit(limit).offset(offset)
            return to_memories(connection, connection.execute(query).all(), self.scope, now, half_life_us)

    @retried
    def count(self, **filters: Unpack[Filters]) -> int:
        """How many memories pass the filters."""
        conditions = filter_conditions(filters)
        self._store.flush_uses()
        with self._store.database.read() as connection:
            place = find_place(connection, self.scope)
            if place is None:
                return 0
            query = sa.select(sa.func.count(MemoryRow.id)).where(*place.conditions(), *conditions)
            return connection.scalar(query) or 0

    @retried
    def search(
        self,
        text: str,
        vector: Vector | None = None,
        *,
        top_k: int = 8,
        threshold: float | None = search.DEFAULT_THRESHOLD,
        explain: bool = False,
        exclude: Iterable[str] = (),
        **filters: Unpack[Filters],
    ) -> Hits:
        """Memories that matter for a query, best first. Nothing found is an empty list.

        Args:
            text: words to look up; may be empty when there is a vector.
            vector: float32 ``(dim,)`` unit vector of the query, or None for lexical search only.
            top_k: most hits.
            threshold: least score of a hit; None for no limit.
            explain: give every hit its scores.
            exclude: ids of memories, or of turns with all their chunks, such as those in the context already.
            filters: as in ``list``.
        """
        if not isinstance(text, str):
            raise InvalidInput(f"text must be a str, not {type(text).__name__}")
        check_characters(text, "text", MAX_QUERY)
        check_int(top_k, "top_k", 0)
        if threshold is not None and (isinstance(threshold, bool) or not isinstance(threshold, int | float)):
            raise InvalidInput(f"threshold must be a number or None, not {threshold!r}")
        packed = None if vector is None else check_vector(vector, embedding_dim(self._store))
        conditions = filter_conditions(filters)
        unwanted = [check_name(one, "id") for one in exclude]
        now = now_us()
        with self._store.database.read() as connection:
            place = find_place(connection, self.scope)
            if place is None:
                return []
            gone = keys_under(connection, place, unwanted) | expiry.expired_keys(connection, place.space_id, now)
            found = search.search(
                connection,
                place,
                text,
                self._store.model_id,
                packed,
                conditions=conditions,
                exclude=gone,
                noise=0.0 if self._store.embedder is None else self._store.embedder.noise,
            )
            best = [one for one in found if threshold is None or one.score >= threshold][:top_k]
            memories = self._by_keys(connection, [one.key for one in best], now)
        return [
            Hit(memory=memories[one.key], score=one.score, explain=one.explain(threshold) if explain else None)
            for one in best
        ]

    @retried
    def history(self, id: str) -> Events:
        """What happened to a memory, oldest first; also of one that was deleted.

        Raises:
            NotFound: there never was such a memory in this scope.
        """
        check_name(id, "id")
        with self._store.database.read() as connection:
            place = find_place(connection, self.scope)
            rows: Sequence[AnyRow] = []
            if place is not None:
                query = sa.select(EventRow.at_us, EventRow.action, EventRow.reason).where(
                    EventRow.space_id == place.space_id, EventRow.memory_uid == id
                )
                if place.session_id is not None:
                    query = query.where(EventRow.session_id == place.session_id)
                rows = connection.execute(query.order_by(EventRow.id)).all()
        if not rows:
            raise NotFound(f"no memory {id!r} in this scope")
        return [Event(at=from_us(row.at_us), action=row.action, reason=row.reason) for row in rows]

    @retried
    def stats(self) -> Stats:
        """This scope in numbers; ``file_bytes`` is the size of the whole store."""
        self._store.flush_uses()
        with self._store.database.read() as connection:
            place = find_place(connection, self.scope)
            rows, streams = (place.conditions(), place.stream_conditions()) if place else ([sa.false()], [sa.false()])
            return count_up(connection, rows, streams, self._store.file_bytes())

    # KV.

    def attach_kv(self, id: str, payload: kv.Bytes, *, fingerprint: str, codec: str, text_sha256: bytes) -> bool:
        """Keep the encoded KV of a memory (cold to warm), in a transaction of its own.

        Args:
            id: whose KV it is.
            payload: packed bytes (``codec.pack``).
            fingerprint: of everything the KV is a function of besides the text.
            codec: name of the codec that packed it.
            text_sha256: ``text_digest`` of the text that was encoded.

        Returns:
            False when the memory is gone or has another text by now; then nothing was kept.

        Raises:
            StoreFull: no room; nothing was kept.
        """
        return bool(self.attach_kv_many([kv.NewKV(id, payload, codec, text_sha256)], fingerprint=fingerprint))

    @retried
    def attach_kv_many(self, payloads: Sequence[kv.NewKV], *, fingerprint: str) -> Ids:
        """As ``attach_kv`` for several memories in one transaction. Returns the ids whose KV was kept."""
        return kv.attach(self._store, self.scope, payloads, fingerprint)

    @retried
    def load_kv(
        self, ids: Iterable[str], *, fingerprint: str, held: Callable[[str, bytes], bool] | None = None
    ) -> LoadedKV:
        """KV of memories under a fingerprint: only whole, matching payloads; the rest is told apart by reason.

        ``held`` is asked for each by (id, sha256 of its payload): what it says True for is at hand, and not loaded.
        """
        return kv.load(self._store, self.scope, ids, fingerprint, held)

    @retried
    def kv_digests(self, ids: Iterable[str], *, fingerprint: str) -> dict[str, bytes]:
        """sha256 of the payloads that ``load_kv`` would read."""
        return kv.digests(self._store, self.scope, ids, fingerprint)

    @retried
    def drop_foreign_kv(self, ids: Iterable[str], *, fingerprint: str) -> int:
        """Remove the KV that memories have under OTHER fingerprints. Returns how many payloads went."""
        return kv.drop_foreign(self._store, self.scope, ids, fingerprint)

    @property
    def space(self) -> Scope:
        """The user and agent of the scope: ids are unique among their memories."""
        return space_of(self.scope)

    @retried
    def tend(self, hot: HotTier[Any], *, fingerprint: str) -> None:
        """Free what a hot tier holds of memories, of any scope, that have been erased since, in whatever process.

        From now on what this store erases is taken out of it at once.
        """
        kv.tend(self._store, self.space, hot, fingerprint)

    # A session's stream.

    @retried
    def open_stream(self, session: str, *, fingerprint: str, record_bytes: int, index_bytes: int) -> StoredStream:
        """The stream that is stored for a session, or an empty one.

        One that was encoded under another fingerprint or in other sizes, or is damaged, is dropped, and the empty one
        says so (``why_empty``). Forgetting or changing a memory of the session drops it as well.

        Args:
            session: whose stream.
            fingerprint: of everything that its bytes are a function of besides the session's text.
            record_bytes: size of each record.
            index_bytes: size of each index entry.

        Raises:
            InvalidInput: an argument cannot be used, or the handle is narrowed to another session.
        """
        return stream_opening.open_stream(
            self._store,
            self.scope,
            session,
            fingerprint=fingerprint,
            record_bytes=record_bytes,
            index_bytes=index_bytes,
        )

    @retried
    def drop_stream(self, session: str) -> bool:
        """Remove a session's stream (its text stays). False when there was none."""
        return stream_opening.drop_stream(self._store, self.scope, session)

    # Moving.

    def export(self, path: str | Path, *, kv: bool = False, progress: Callable[[int, int], None] | None = None) -> int:
        """Write this scope's memories to a JSONL file. Returns how many.

        Args:
            path: the file; it appears whole or not at all.
            kv: write their KV as well, to a file of the same name that ends in ``.safetensors``.
            progress: called with (done, total).
        """
        self._store.flush_uses()
        return transfer.export(self._store, self.scope, Path(path), progress, with_kv=kv)

    def load(self, path: str | Path, *, progress: Callable[[int, int], None] | None = None) -> int:
        """Read an exported file, and the KV beside it, into THIS scope. Memories that are here stay as they are.

        Returns:
            How many were new.

        Raises:
            InvalidInput: a line cannot be used; then nothing was written.
        """
        return transfer.load(self._store, self.scope, Path(path), progress)

    # Shared steps.

    def _by_keys(self, connection: sa.Connection, keys: Sequence[int], now: int) -> dict[int, Memory]:
        return memories_of(connection, keys, self.scope, now, self._store.policy.half_life_us)

    def _cool(self, ids: Collection[str]) -> None:
        changing.cool(self._store, self.scope, ids)

    def _forget(self, connection: sa.Connection, place: Place, rows: Sequence[AnyRow], reason: str) -> None:
        writing.forget(connection, [row.id for row in rows])
        gone = [(row.session_id, row.uid) for row in rows]
        writing.note(connection, place.space_id, gone, "deleted", reason, now_us())
