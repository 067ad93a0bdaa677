"""A scope as the database knows it. Every query on memories takes its conditions from here, so that it fails closed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from agentmem.records import Scope
from agentmem.store.dialects import on_postgres, search_engine
from agentmem.store.inputs import now_us
from agentmem.store.postgres import isolation
from agentmem.store.schema import LogRow, MemoryRow, SessionRow, Space, StreamRow

AnyRow = sa.Row[*tuple[Any, ...]]
"""A row whose columns the reader knows."""
Dated = type[MemoryRow] | type[LogRow]
"""A table whose rows may have a date of expiry."""


@dataclass(frozen=True)
class Place:
    """Keys of a scope that exists in the database."""

    scope: Scope
    space_id: int
    session_id: int | None
    """Set only when the scope is narrowed to one session."""
    now_us: int
    """When it was looked up; what had expired by then is not there."""

    def conditions(self) -> list[sa.ColumnElement[bool]]:
        """What a memory row must fulfil to belong to the scope, and not to have expired."""
        return [*self.rows(), not_expired(MemoryRow, self.now_us)]

    def rows(self) -> list[sa.ColumnElement[bool]]:
        """What a memory row must fulfil to belong to the scope, expired ones included. Only for erasing them."""
        conditions = [MemoryRow.space_id == self.space_id]
        if self.session_id is not None:
            conditions.append(MemoryRow.session_id == self.session_id)
        return conditions

    def stream_conditions(self) -> list[sa.ColumnElement[bool]]:
        """What a stream's row must fulfil to belong to the scope."""
        conditions = [StreamRow.space_id == self.space_id]
        if self.session_id is not None:
            conditions.append(StreamRow.session_id == self.session_id)
        return conditions


def space_of(scope: Scope) -> Scope:
    """The user and agent of a scope: what ids are unique in."""
    return Scope(user=scope.user, agent=scope.agent)


def not_expired(table: Dated, now: int) -> sa.ColumnElement[bool]:
    """What a row of the table must fulfil to be there."""
    return sa.or_(table.expires_us.is_(None), table.expires_us > now)


def has_expired(table: Dated, now: int) -> sa.ColumnElement[bool]:
    """What a row of the table must fulfil to be there no more."""
    return sa.and_(table.expires_us.is_not(None), table.expires_us <= now)


def see_all(connection: sa.Connection) -> None:
    """Let this transaction work on the whole store, not on one scope. (PostgreSQL shows nothing unless told.)"""
    if on_postgres(connection):
        isolation.see_all(connection)


def see_space(connection: sa.Connection, space_id: int) -> None:
    """Let this transaction work on one space, by its key. (PostgreSQL shows nothing unless told.)"""
    if on_postgres(connection):
        isolation.narrow_to_space(connection, space_id)


def lock_spaces(connection: sa.Connection) -> None:
    """Make writers of every space wait until this transaction ends. (On SQLite they do anyway.)"""
    connection.execute(sa.select(Space.id).order_by(Space.id).with_for_update(key_share=True))


def find_place(connection: sa.Connection, scope: Scope) -> Place | None:
    """The keys of a scope, or None when nothing was ever written to it. From here on the transaction sees it alone.

    A writing transaction has its space to itself until it ends.
    """
    space_id = _find_space(connection, scope)
    if space_id is None:
        return None
    if scope.session is None:
        return Place(scope, space_id, None, now_us())
    session_id = connection.scalar(
        sa.select(SessionRow.id).where(SessionRow.space_id == space_id, SessionRow.label == scope.session)
    )
    return None if session_id is None else Place(scope, space_id, session_id, now_us())


def make_space(connection: sa.Connection, scope: Scope, now: int) -> int:
    """Key of the (user, agent) of a scope, created when missing."""
    row = _find_space(connection, scope)
    if row is not None:
        return row
    values = {"user_key": scope.user, "agent_key": scope.agent, "created_us": now}
    row = connection.execute(sa.insert(Space).values(values).returning(Space.id)).scalar_one()
    if on_postgres(connection):
        isolation.narrow_to_space(connection, row)
    search_engine(connection).add_space(connection, row)
    return row


def make_session(connection: sa.Connection, space_id: int, label: str, now: int) -> int:
    """Key of a session of a space, created when missing."""
    row = connection.scalar(sa.select(SessionRow.id).where(SessionRow.space_id == space_id, SessionRow.label == label))
    if row is not None:
        return row
    values = {"space_id": space_id, "label": label, "created_us": now}
    return connection.execute(sa.insert(SessionRow).values(values).returning(SessionRow.id)).scalar_one()


def _find_space(connection: sa.Connection, scope: Scope) -> int | None:
    query = sa.select(Space.id).where(Space.user_key == scope.user, Space.agent_key == scope.agent)
    if not on_postgres(connection):
        return connection.scalar(query)
    isolation.narrow_to_name(connection, scope.user, scope.agent)
    if connection.get_execution_options().get("write", False):
        query = query.with_for_update(key_share=True)
    space_id = connection.scalar(query)
    if space_id is not None:
        isolation.narrow_to_space(connection, space_id)
    return space_id
