"""What was ever stored, whether it is still there or not: a dialogue that is sent again does not bring it back."""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy as sa

from agentmem.records import Role, Scope
from agentmem.store.inputs import check_name, text_digest
from agentmem.store.places import find_place, see_all
from agentmem.store.retry import retried
from agentmem.store.schema import EventRow, MemoryRow, Space, Turn
from agentmem.store.store import Store


@retried
def ever_stored(store: Store, scope: Scope, ids: Iterable[str]) -> set[str]:
    """Those of the ids (a few hundred at most) that were stored in this scope at any time."""
    wanted = [check_name(one, "id") for one in ids]
    with store.database.read() as connection:
        place = find_place(connection, scope)
        if place is None:
            return set()
        query = sa.select(EventRow.memory_uid).where(
            EventRow.space_id == place.space_id, EventRow.memory_uid.in_(wanted)
        )
        if place.session_id is not None:
            query = query.where(EventRow.session_id == place.session_id)
        return set(connection.scalars(query.distinct()))


@retried
def homes(store: Store, ids: Iterable[str]) -> list[Scope]:
    """Where (user and agent) a memory with one of these ids was ever stored: of an id alone, whose it is."""
    wanted = [check_name(one, "id") for one in ids]
    with store.database.read() as connection:
        see_all(connection)
        stored = sa.exists().where(EventRow.space_id == Space.id, EventRow.memory_uid.in_(wanted))
        query = sa.select(Space.user_key, Space.agent_key).where(stored).order_by(Space.id)
        return [Scope(user=user, agent=agent) for user, agent in connection.execute(query)]


@retried
def turns_saying(store: Store, scope: Scope, role: Role, text: str) -> list[str]:
    """Ids of the turns of this scope whose first memory is this text, newest first; 20 at most."""
    with store.database.read() as connection:
        place = find_place(connection, scope)
        if place is None:
            return []
        query = sa.select(Turn.uid).join(MemoryRow, MemoryRow.turn_id == Turn.id)
        said = (MemoryRow.chunk_no == 0, MemoryRow.role == role, MemoryRow.text_sha256 == text_digest(text))
        return list(connection.scalars(query.where(*place.conditions(), *said).order_by(MemoryRow.id.desc()).limit(20)))


@retried
def turns_behind(store: Store, scope: Scope, key: str, turn: str) -> list[str]:
    """Ids of the turns of this scope whose ``meta`` names the turn under the key, newest first; 100 at most.

    Only what was stored after that turn is looked at; everything, when it is not there any more.
    """
    with store.database.read() as connection:
        place = find_place(connection, scope)
        if place is None:
            return []
        last = sa.select(sa.func.max(MemoryRow.id)).join(Turn, Turn.id == MemoryRow.turn_id)
        after = connection.scalar(last.where(Turn.space_id == place.space_id, Turn.uid == turn)) or 0
        query = sa.select(Turn.uid).join(MemoryRow, MemoryRow.turn_id == Turn.id)
        behind = (MemoryRow.id > after, MemoryRow.chunk_no == 0, MemoryRow.meta[key].as_string() == turn)
        return list(
            connection.scalars(query.where(*place.conditions(), *behind).order_by(MemoryRow.id.desc()).limit(100))
        )
