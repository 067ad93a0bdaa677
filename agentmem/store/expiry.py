"""Memories with a date of expiry: from that moment on they are not there, and writes take them out of the files.

Reading needs no write: ``Place.conditions`` leaves out what has expired, and a search what this file finds in a small
index of its own. Every write transaction erases some of it, so nothing has to wake up.
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from agentmem.records import Scope
from agentmem.store import writing
from agentmem.store.inputs import Checked
from agentmem.store.places import has_expired
from agentmem.store.rows import SLICE
from agentmem.store.schema import MemoryRow, Space, StreamRow, Turn

MOST = 200
"""Memories erased along with one write: others wait for its lock."""
REASON = "expired"

Erased = list[tuple[int, int]]
"""(turn key, memory key), for ``Store.erase``."""


def spaces(connection: sa.Connection, now: int, most: int) -> list[Scope]:
    """Where something has expired that is still in the tables; mostly nowhere."""
    query = sa.select(Space.user_key, Space.agent_key).join(MemoryRow, MemoryRow.space_id == Space.id)
    found = connection.execute(query.where(has_expired(MemoryRow, now)).distinct().limit(most))
    return [Scope(user=user, agent=agent) for user, agent in found]


def expired_keys(connection: sa.Connection, space_id: int, now: int) -> set[int]:
    """Keys of a space's memories that have expired and are still in the tables; mostly none."""
    return set(
        connection.scalars(sa.select(MemoryRow.id).where(has_expired(MemoryRow, now), MemoryRow.space_id == space_id))
    )


def erase(connection: sa.Connection, now: int, *conditions: sa.ColumnElement[bool], most: int | None = None) -> Erased:
    """Remove memories that have expired, those first that expired first; the audit keeps ids, time and reason."""
    columns = (MemoryRow.id, MemoryRow.uid, MemoryRow.space_id, MemoryRow.session_id, MemoryRow.turn_id)
    query = (
        sa.select(*columns).where(has_expired(MemoryRow, now), *conditions).order_by(MemoryRow.expires_us).limit(most)
    )
    rows = connection.execute(query).all()
    if not rows:
        return []
    writing.forget(connection, [row.id for row in rows])
    for space_id in {row.space_id for row in rows}:
        gone = [(row.session_id, row.uid) for row in rows if row.space_id == space_id]
        writing.note(connection, space_id, gone, "evicted", REASON, now)
    return [(row.turn_id, row.id) for row in rows]


def make_way(connection: sa.Connection, space_id: int, items: Sequence[Checked], now: int) -> Erased:
    """Remove what has expired and has an id or a turn of ``items``: nothing of it is in the way of new memories."""
    if not expired_keys(connection, space_id, now):
        return []
    gone: Erased = []
    for start in range(0, len(items), SLICE):
        some = items[start : start + SLICE]
        turns = sa.select(Turn.id).where(Turn.space_id == space_id, Turn.uid.in_({item.turn for item in some}))
        uids = {item.uid for item in some if item.uid is not None}
        same = sa.or_(MemoryRow.uid.in_(uids), MemoryRow.turn_id.in_(turns))
        gone += erase(connection, now, MemoryRow.space_id == space_id, same)
    return gone


def in_session_of(connection: sa.Connection, stream_key: int, now: int) -> bool:
    """Whether a memory has expired that a stream was encoded from."""
    session = sa.select(StreamRow.session_id).where(StreamRow.id == stream_key).scalar_subquery()
    found = sa.select(MemoryRow.id).where(has_expired(MemoryRow, now), MemoryRow.session_id == session).limit(1)
    return connection.scalar(found) is not None
