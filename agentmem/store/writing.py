"""What changes memories, as steps on an open write transaction: add, change text, forget, drop KV, note an event."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import sqlalchemy as sa

from agentmem.errors import InvalidInput
from agentmem.records import Scope
from agentmem.store import index, tally
from agentmem.store.dialects import on_postgres
from agentmem.store.inputs import Checked
from agentmem.store.places import AnyRow, Place, make_session, make_space
from agentmem.store.rows import SLICE
from agentmem.store.schema import (
    Embedding,
    EventRow,
    KVPayload,
    KVTrash,
    LogRow,
    MemoryRow,
    MemoryTag,
    MemoryUsage,
    SessionRow,
    Space,
    StreamRecord,
    StreamRow,
    Tally,
    Turn,
)

V = TypeVar("V")


def add(
    connection: sa.Connection, scope: Scope, items: Sequence[Checked], model_id: int | None, now: int
) -> tuple[int, list[int], set[int]]:
    """Store new memories with their indexes and counters.

    Returns:
        The space's key; the memories' keys in the order of ``items``, where one stored before is not stored again; and
        which of the keys are new.

    Raises:
        InvalidInput: an id or a place in a turn is taken by another text.
    """
    space_id = make_space(connection, scope, now)
    labels = {item.session for item in items if item.session is not None}
    sessions = {label: make_session(connection, space_id, label, now) for label in sorted(labels)}
    present = _Present(connection, space_id, items)
    chosen: list[_Stored] = []
    fresh: list[_Stored] = []
    for item in items:
        session_id = None if item.session is None else sessions[item.session]
        stored = present.find(item, session_id)
        if stored is None:
            stored = present.expect(connection, item, session_id, now)
            fresh.append(stored)
        chosen.append(stored)
    _insert(connection, space_id, fresh, now)
    vectors = [(one.key, space_id, one.item.vector) for one in fresh if one.item and one.item.vector is not None]
    store_vectors(connection, model_id, vectors)
    changed = {one.turn_id for one in fresh}
    index.index_texts(connection, changed | index.neighbours(connection, changed))
    return space_id, [one.key for one in chosen], {one.key for one in fresh}


def store_vectors(connection: sa.Connection, model_id: int | None, vectors: list[tuple[int, int, bytes]]) -> None:
    """Write (memory key, space key, vector) to the table and to its index."""
    if model_id is None or not vectors:
        return
    connection.execute(
        sa.insert(Embedding), [{"memory_id": key, "model_id": model_id, "vec": vec} for key, _, vec in vectors]
    )
    index.index_vectors(connection, model_id, vectors)


@dataclass
class _Stored:
    """A memory that is in the database, or (with ``item``) is about to be."""

    uid: str
    digest: bytes
    session_id: int | None
    turn_id: int
    key: int = 0
    item: Checked | None = None


class _Present:
    """What a batch may meet: memories of the same ids, its turns and their chunks. Read at once, kept up to date."""

    def __init__(self, connection: sa.Connection, space_id: int, items: Sequence[Checked]):
        self.space_id = space_id
        self.by_uid: dict[str, _Stored] = {}
        self.by_chunk: dict[tuple[int, int], _Stored] = {}
        self.turns: dict[str, tuple[int, int | None]] = {}
        columns = sa.select(
            MemoryRow.id,
            MemoryRow.uid,
            MemoryRow.text_sha256,
            MemoryRow.session_id,
            MemoryRow.turn_id,
            MemoryRow.chunk_no,
        )
        for uids in _slices(sorted({item.uid for item in items if item.uid is not None})):
            mine = (MemoryRow.space_id == space_id, MemoryRow.uid.in_(uids))
            for row in connection.execute(columns.where(*mine)):
                self.by_uid[row.uid] = _Stored(row.uid, row.text_sha256, row.session_id, row.turn_id, row.id)
        for uids in _slices(sorted({item.turn for item in items})):
            turns = sa.select(Turn.id, Turn.uid, Turn.session_id)
            for turn in connection.execute(turns.where(Turn.space_id == space_id, Turn.uid.in_(uids))):
                self.turns[turn.uid] = (turn.id, turn.session_id)
        for turn_ids in _slices(sorted(turn_id for turn_id, _ in self.turns.values())):
            for row in connection.execute(columns.where(MemoryRow.turn_id.in_(turn_ids))):
                stored = _Stored(row.uid, row.text_sha256, row.session_id, row.turn_id, row.id)
                self.by_chunk[row.turn_id, row.chunk_no] = stored

    def find(self, item: Checked, session_id: int | None) -> _Stored | None:
        """The memory that this one repeats, by its id or by its place in its turn."""
        if item.uid is not None and item.uid in self.by_uid:
            same = self.by_uid[item.uid]
            if same.digest != item.digest or same.session_id != session_id:
                raise InvalidInput(f"id {item.uid!r} is taken by another memory; update it, or choose another id")
            return same
        turn_id, turn_session = self.turns.get(item.turn, (0, session_id))
        if turn_session != session_id:
            raise InvalidInput(f"turn {item.turn!r} belongs to another session; a turn lies in one session")
        place = self.by_chunk.get((turn_id, item.chunk_no))
        if place is not None and (place.digest != item.digest or item.uid is not None):
            raise InvalidInput(
                f"turn {item.turn!r} already has another chunk {item.chunk_no}; number its chunks from 0"
            )
        return place

    def expect(self, connection: sa.Connection, item: Checked, session_id: int | None, now: int) -> _Stored:
        """Note that this one will be inserted; its turn is made now."""
        if item.turn not in self.turns:
            values = {"uid": item.turn, "space_id": self.space_id, "session_id": session_id}
            insert = sa.insert(Turn).values(created_us=item.created_us, **values).returning(Turn.id)
            self.turns[item.turn] = (connection.execute(insert).scalar_one(), session_id)
        turn_id, _ = self.turns[item.turn]
        stored = _Stored(item.uid or uuid.uuid4().hex, item.digest, session_id, turn_id, item=item)
        self.by_uid[stored.uid] = self.by_chunk[turn_id, item.chunk_no] = stored
        return stored


def _insert(connection: sa.Connection, space_id: int, fresh: Sequence[_Stored], now: int) -> None:
    """Insert the rows, and set the keys that they got."""
    pairs = [(one, one.item) for one in fresh if one.item is not None]
    if not pairs:
        return
    rows = [
        {
            "uid": one.uid,
            "space_id": space_id,
            "session_id": one.session_id,
            "turn_id": one.turn_id,
            "chunk_no": item.chunk_no,
            "role": item.role,
            "created_us": item.created_us,
            "n_tokens": item.n_tokens,
            "text": item.text,
            "text_sha256": item.digest,
            "pinned": item.pinned,
            "meta": item.meta,
            "expires_us": item.expires_us,
        }
        for one, item in pairs
    ]
    returning = sa.insert(MemoryRow).returning(MemoryRow.id, sort_by_parameter_order=True)
    for one, key in zip(fresh, connection.scalars(returning, rows), strict=True):
        one.key = key
    unused: dict[str, Any] = {
        "uses": 0,
        "attention": 0.0,
        "score": 0.0,
        "score_us": now,
        "last_us": None,
        "recent_turns": [],
        "recent_reads": [],
    }
    connection.execute(sa.insert(MemoryUsage), [{"memory_id": one.key} | unused for one in fresh])
    tally.change(connection, space_id, memories=len(fresh))
    tags = [{"memory_id": one.key, "tag": tag} for one, item in pairs for tag in item.tags]
    if tags:
        connection.execute(sa.insert(MemoryTag), tags)
    note(connection, space_id, [(one.session_id, one.uid) for one in fresh], "added", "", now)


def _slices(values: list[V]) -> Iterator[list[V]]:
    for start in range(0, len(values), SLICE):
        yield values[start : start + SLICE]


def set_tags(connection: sa.Connection, key: int, tags: Iterable[str]) -> None:
    """Replace the tags of a memory."""
    connection.execute(sa.delete(MemoryTag).where(MemoryTag.memory_id == key))
    rows = [{"memory_id": key, "tag": tag} for tag in tags]
    if rows:
        connection.execute(sa.insert(MemoryTag), rows)


def change_text(
    connection: sa.Connection,
    space_id: int,
    row: AnyRow,
    item: dict[str, Any],
    model_id: int | None,
    vec: bytes | None,
) -> None:
    """Give a memory another text: its KV, its session's stream and every vector go, its keys are rewritten."""
    tally.replaced(connection, space_id)
    drop_kv(connection, [row.id])
    drop_streams(connection, StreamRow.session_id == row.session_id)
    index.unindex(connection, [row.id])
    connection.execute(sa.delete(Embedding).where(Embedding.memory_id == row.id))
    connection.execute(sa.update(MemoryRow).where(MemoryRow.id == row.id).values(**item))
    if vec is not None:
        store_vectors(connection, model_id, [(row.id, space_id, vec)])
    index.index_texts(connection, {row.turn_id} | index.neighbours(connection, [row.turn_id]))


def drop_kv(connection: sa.Connection, keys: Sequence[int], *conditions: sa.ColumnElement[bool]) -> int:
    """Warm to cold: the bytes go (files by way of the trash), the text stays. Returns how many payloads went."""
    gone = 0
    for start in range(0, len(keys), SLICE):
        chosen = sa.and_(KVPayload.memory_id.in_(keys[start : start + SLICE]), *conditions)
        uris = sa.select(KVPayload.uri).where(chosen, KVPayload.uri.is_not(None))
        connection.execute(sa.insert(KVTrash).from_select(["uri"], uris))
        tally.take_kv(connection, KVPayload, chosen)
        gone += connection.execute(sa.delete(KVPayload).where(chosen)).rowcount
    return gone


def stream_folder(key: int) -> str:
    """Where the files or objects of a stream lie; also the uri by which the trash names all of its files."""
    return f"streams/{key}"


def drop_streams(connection: sa.Connection, *conditions: sa.ColumnElement[bool]) -> None:
    """Remove streams: their rows now, their files or objects by way of the trash."""
    keys = connection.scalars(sa.select(StreamRow.id).where(*conditions)).all()
    if keys:
        if on_postgres(connection):
            for query in (
                sa.select(StreamRow.tail_uri).where(StreamRow.id.in_(keys), StreamRow.tail_uri.is_not(None)),
                sa.select(StreamRecord.uri).where(StreamRecord.stream_id.in_(keys), StreamRecord.uri.is_not(None)),
            ):
                connection.execute(sa.insert(KVTrash).from_select(["uri"], query))
        else:
            connection.execute(sa.insert(KVTrash), [{"uri": stream_folder(key)} for key in keys])
        tally.take_kv(connection, StreamRow, *conditions)
        connection.execute(sa.delete(StreamRow).where(*conditions))


def forget(connection: sa.Connection, keys: Sequence[int]) -> None:
    """Remove memories from every table and index, and what neighbours' keys quote of them. The caller notes why.

    The streams of their sessions go too: what came after a forgotten text was encoded in its context.
    """
    turn_ids: set[int] = set()
    for start in range(0, len(keys), SLICE):
        chosen = MemoryRow.id.in_(keys[start : start + SLICE])
        turn_ids.update(connection.scalars(sa.select(MemoryRow.turn_id).where(chosen)))
        drop_streams(connection, StreamRow.session_id.in_(sa.select(MemoryRow.session_id).where(chosen)))
    around = index.neighbours(connection, turn_ids)
    index.unindex(connection, keys)
    drop_kv(connection, keys)
    for start in range(0, len(keys), SLICE):
        some = keys[start : start + SLICE]
        for table in (Embedding, MemoryTag, MemoryUsage):
            connection.execute(sa.delete(table).where(table.memory_id.in_(some)))
        tally.take_memories(connection, MemoryRow.id.in_(some))
        connection.execute(sa.delete(MemoryRow).where(MemoryRow.id.in_(some)))
    ordered = sorted(turn_ids)
    for start in range(0, len(ordered), SLICE):
        emptied = sa.select(MemoryRow.id).where(MemoryRow.turn_id == Turn.id).correlate(Turn).exists()
        connection.execute(sa.delete(Turn).where(Turn.id.in_(ordered[start : start + SLICE]), ~emptied))
    index.index_texts(connection, turn_ids | around)


def forget_place(connection: sa.Connection, place: Place) -> None:
    """After its memories: whatever else there is of a scope, down to its name."""
    drop_streams(connection, *place.stream_conditions())
    events = sa.delete(EventRow).where(EventRow.space_id == place.space_id)
    if place.session_id is not None:
        connection.execute(events.where(EventRow.session_id == place.session_id))
        connection.execute(sa.delete(SessionRow).where(SessionRow.id == place.session_id))
    else:
        connection.execute(events)
        connection.execute(sa.delete(SessionRow).where(SessionRow.space_id == place.space_id))
        connection.execute(sa.delete(LogRow).where(LogRow.space_id == place.space_id))
        connection.execute(sa.delete(Tally).where(Tally.space_id == place.space_id))
        connection.execute(sa.delete(Space).where(Space.id == place.space_id))


def note(
    connection: sa.Connection,
    space_id: int,
    memories: Sequence[tuple[int | None, str]],
    action: str,
    reason: str,
    now: int,
) -> None:
    """Write the same audit line for each (session key, id)."""
    rows = [
        {
            "space_id": space_id,
            "session_id": session_id,
            "memory_uid": uid,
            "at_us": now,
            "action": action,
            "reason": reason,
        }
        for session_id, uid in memories
    ]
    if rows:
        connection.execute(sa.insert(EventRow), rows)
