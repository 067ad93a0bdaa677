"""Running totals of each space: memories, and bytes of KV. Kept in the transaction that changes what they count.

Every write asks whether a budget is exceeded; counting a million rows for that would cost more than the write.
"""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from agentmem.store.schema import KVPayload, MemoryRow, Space, StreamRow, Tally


@dataclass(frozen=True)
class Totals:
    """``kv_bytes`` is of memories and streams."""

    memories: int
    kv_bytes: int


def totals(connection: sa.Connection, space_id: int | None) -> Totals:
    """Of a space, or of all."""
    query = sa.select(
        sa.func.coalesce(sa.func.sum(Tally.memories), 0), sa.func.coalesce(sa.func.sum(Tally.kv_bytes), 0)
    )
    if space_id is not None:
        query = query.where(Tally.space_id == space_id)
    memories, kv_bytes = connection.execute(query).one()
    return Totals(int(memories), int(kv_bytes))


def change(connection: sa.Connection, space_id: int, *, memories: int = 0, kv_bytes: int = 0) -> None:
    """Add to a space's totals; numbers below 0 take away, and count as an erasure."""
    if not memories and not kv_bytes:
        return
    update = sa.update(Tally).where(Tally.space_id == space_id)
    erased = int(memories < 0 or kv_bytes < 0)
    values = {
        "memories": Tally.memories + memories,
        "kv_bytes": Tally.kv_bytes + kv_bytes,
        "erasures": Tally.erasures + erased,
    }
    if not connection.execute(update.values(**values)).rowcount:
        connection.execute(sa.insert(Tally).values(space_id=space_id, memories=memories, kv_bytes=kv_bytes))


def replaced(connection: sa.Connection, space_id: int) -> None:
    """Count an erasure: what was a memory's text and vector has become another."""
    connection.execute(sa.update(Tally).where(Tally.space_id == space_id).values(erasures=Tally.erasures + 1))


def take_memories(connection: sa.Connection, chosen: sa.ColumnElement[bool]) -> None:
    """Take away the memories that ``chosen`` is true of, which are about to be deleted."""
    count = sa.select(MemoryRow.space_id, sa.func.count()).where(chosen).group_by(MemoryRow.space_id)
    for space_id, n in connection.execute(count).all():
        change(connection, space_id, memories=-n)


def take_kv(
    connection: sa.Connection, table: type[KVPayload] | type[StreamRow], *chosen: sa.ColumnElement[bool]
) -> None:
    """Take away the bytes of payloads or streams that ``chosen`` is true of, which are about to be deleted."""
    count = sa.select(table.space_id, sa.func.sum(table.nbytes)).where(*chosen).group_by(table.space_id)
    for space_id, nbytes in connection.execute(count).all():
        change(connection, space_id, kv_bytes=-int(nbytes))


def wrong(connection: sa.Connection) -> dict[int, tuple[Totals, Totals]]:
    """By space: the totals kept and those counted, where they differ."""
    found = {}
    for space_id, counted in _count(connection).items():
        kept = totals(connection, space_id)
        if kept != counted:
            found[space_id] = (kept, counted)
    return found


def recount(connection: sa.Connection) -> None:
    """Count everything, and keep that. For ``verify``, and for whoever fills the tables past this package's writes."""
    known = dict(connection.execute(sa.select(Tally.space_id, Tally.erasures)).all())
    connection.execute(sa.delete(Tally))
    rows = [
        {"space_id": space_id, **vars(counted), "erasures": known.get(space_id, 0) + 1}
        for space_id, counted in _count(connection).items()
    ]
    if rows:
        connection.execute(sa.insert(Tally), rows)


def _count(connection: sa.Connection) -> dict[int, Totals]:
    memories = dict(
        connection.execute(sa.select(MemoryRow.space_id, sa.func.count()).group_by(MemoryRow.space_id)).all()
    )
    kv_bytes: dict[int, int] = {}
    for table in (KVPayload, StreamRow):
        sums = sa.select(table.space_id, sa.func.sum(table.nbytes)).group_by(table.space_id)
        for space_id, nbytes in connection.execute(sums):
            kv_bytes[space_id] = kv_bytes.get(space_id, 0) + int(nbytes)
    spaces = connection.scalars(sa.select(Space.id)).all()
    return {space: Totals(memories.get(space, 0), kv_bytes.get(space, 0)) for space in spaces}
