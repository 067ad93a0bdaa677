"""Changing one memory: another text, tags or meta; a pin; a date of expiry."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from agentmem.errors import InvalidInput, NotFound
from agentmem.records import Memory, Scope
from agentmem.store import writing
from agentmem.store.inputs import (
    MAX_TEXT,
    Vector,
    check_expiry,
    check_int,
    check_meta,
    check_name,
    check_tags,
    check_vector,
    now_us,
    text_digest,
)
from agentmem.store.places import AnyRow, Place, find_place, space_of
from agentmem.store.rows import keys_of, memories_of
from agentmem.store.schema import MemoryRow
from agentmem.text import check_text

if TYPE_CHECKING:
    from agentmem.store.store import Store


def update(
    store: Store,
    scope: Scope,
    id: str,
    text: str | None,
    embedding: Vector | None,
    n_tokens: int | None,
    tags: Sequence[str] | None,
    meta: Mapping[str, Any] | None,
) -> Memory:
    """See ``ScopedMemories.update``."""
    check_name(id, "id")
    if text is None and (embedding is not None or n_tokens is not None):
        raise InvalidInput("embedding and n_tokens describe a new text; give text as well")
    if text is not None and n_tokens is None:
        raise InvalidInput("a new text needs its n_tokens")
    item: dict[str, Any] = {}
    vector = None
    if text is not None:
        item = {"text": check_text(text, longest=MAX_TEXT), "text_sha256": text_digest(text)}
        item["n_tokens"] = check_int(n_tokens, "n_tokens", 0)
        if embedding is not None:
            vector = check_vector(embedding, embedding_dim(store))
    clean_tags = None if tags is None else check_tags(tags)
    clean_meta = None if meta is None else check_meta(meta)
    now = now_us()
    with store.write() as connection:
        place, row = row_of(connection, scope, id)
        new_text = bool(item) and row.text_sha256 != item["text_sha256"]
        if new_text:
            writing.change_text(connection, place.space_id, row, item, store.model_id, vector)
        if clean_tags is not None:
            writing.set_tags(connection, row.id, clean_tags)
        if clean_meta is not None:
            connection.execute(sa.update(MemoryRow).where(MemoryRow.id == row.id).values(meta=clean_meta))
        changed = [
            name for name, given in (("text", new_text), ("tags", tags), ("meta", meta)) if given not in (None, False)
        ]
        if changed:
            what = ", ".join(changed)
            writing.note(connection, place.space_id, [(row.session_id, id)], "updated", what, now)
        memory = _record(store, connection, scope, row.id, now)
    if new_text:
        store.erase([(row.turn_id, row.id)])
        cool(store, scope, [id])
    return memory


def pin(store: Store, scope: Scope, id: str, pinned: bool) -> Memory:
    """See ``ScopedMemories.pin``."""
    check_name(id, "id")
    if not isinstance(pinned, bool):
        raise InvalidInput(f"pinned must be True or False, not {pinned!r}")
    now = now_us()
    with store.write() as connection:
        place, row = row_of(connection, scope, id)
        changed = connection.execute(
            sa.update(MemoryRow).where(MemoryRow.id == row.id, MemoryRow.pinned.is_not(pinned)).values(pinned=pinned)
        )
        if changed.rowcount:
            action = "pinned" if pinned else "unpinned"
            writing.note(connection, place.space_id, [(row.session_id, id)], action, "", now)
        return _record(store, connection, scope, row.id, now)


def expire(store: Store, scope: Scope, id: str, at: datetime | None) -> Memory:
    """See ``ScopedMemories.expire``."""
    check_name(id, "id")
    now = now_us()
    expires_us = check_expiry(at, now)
    with store.write() as connection:
        place, row = row_of(connection, scope, id)
        connection.execute(sa.update(MemoryRow).where(MemoryRow.id == row.id).values(expires_us=expires_us))
        reason = "expires never" if at is None else f"expires {at.astimezone(UTC).isoformat(' ', 'seconds')}"
        writing.note(connection, place.space_id, [(row.session_id, id)], "updated", reason, now)
        return _record(store, connection, scope, row.id, now)


def cool(store: Store, scope: Scope, ids: Collection[str]) -> None:
    """Free what the hot tiers of this process hold of memories that are gone."""
    gone = set(ids)
    for hot in list(store.hot):
        hot.discard(space_of(scope), gone)


def row_of(connection: sa.Connection, scope: Scope, id: str) -> tuple[Place, AnyRow]:
    """Where a memory is.

    Raises:
        NotFound: no such memory in this scope.
    """
    place = find_place(connection, scope)
    row = keys_of(connection, place, [id]).get(id) if place else None
    if place is None or row is None:
        raise NotFound(f"no memory {id!r} in this scope")
    return place, row


def embedding_dim(store: Store) -> int:
    """Raises InvalidInput when no embedder says what a vector means."""
    if store.embedder is None:
        raise InvalidInput("the store was opened without an embedder; it cannot use a vector")
    return store.embedder.dim


def _record(store: Store, connection: sa.Connection, scope: Scope, key: int, now: int) -> Memory:
    return memories_of(connection, [key], scope, now, store.policy.half_life_us)[key]
