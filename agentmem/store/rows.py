"""Memories as records: filters, orders, and the one query that reads them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypedDict

import sqlalchemy as sa

from agentmem.errors import InvalidInput
from agentmem.records import Memory, Read, Role, Scope, Tier
from agentmem.store.eviction import decayed
from agentmem.store.inputs import check_int, check_name, check_role, check_session, check_tags, from_us, to_us
from agentmem.store.meta_filter import meta_conditions
from agentmem.store.places import AnyRow, Place
from agentmem.store.schema import KVPayload, MemoryRow, MemoryTag, MemoryUsage, SessionRow, Turn, totalled

SLICE = 500
"""Ids per statement, below every database's limit on parameters."""


class Filters(TypedDict, total=False):
    """What list, count and search can be narrowed by; all given ones must hold."""

    role: Role | str
    tags: Sequence[str]
    """Every one of these."""
    under: str
    """With a tag that is this path or lies below it: its segments, between ``/``, are compared whole."""
    meta: Mapping[str, str | float | None]
    """Each key is in ``meta``, at its top, with just this str, number, bool or None."""
    tier: Tier | str
    """``warm`` or ``cold``; what is hot is known to the process that holds it, not to the store."""
    session: str
    since: datetime
    """Written at or after."""
    until: datetime
    """Written before."""
    pinned: bool
    min_uses: int
    turns: Sequence[str]
    """Cut from one of these turns."""


HAS_KV = sa.select(KVPayload.memory_id).where(KVPayload.memory_id == MemoryRow.id).correlate(MemoryRow).exists()


def filter_conditions(filters: Filters) -> list[sa.ColumnElement[bool]]:
    """SQL conditions on ``memory`` (and ``memory_usage``, correlated).

    Raises:
        InvalidInput: a filter that does not exist or cannot be.
    """
    unknown = set(filters) - set(Filters.__annotations__)
    if unknown:
        raise InvalidInput(f"unknown filter {sorted(unknown)}; there are {', '.join(Filters.__annotations__)}")
    found: list[sa.ColumnElement[bool]] = []
    if "role" in filters:
        found.append(MemoryRow.role == check_role(filters["role"]).value)
    for tag in check_tags(filters.get("tags", ())):
        tagged = sa.select(MemoryTag.memory_id).where(MemoryTag.memory_id == MemoryRow.id, MemoryTag.tag == tag)
        found.append(tagged.correlate(MemoryRow).exists())
    if "under" in filters:
        path = check_name(filters["under"], "under")
        # Not LIKE, to which SQLite gives no heed to case.
        below = sa.func.substr(MemoryTag.tag, 1, len(path) + 1) == f"{path}/"
        tagged = sa.select(MemoryTag.memory_id).where(
            MemoryTag.memory_id == MemoryRow.id, sa.or_(MemoryTag.tag == path, below)
        )
        found.append(tagged.correlate(MemoryRow).exists())
    if "meta" in filters:
        found += meta_conditions(filters["meta"])
    if "tier" in filters:
        found.append(HAS_KV if _tier(filters["tier"]) is Tier.WARM else ~HAS_KV)
    if "session" in filters:
        label = check_session(filters["session"])
        sessions = sa.select(SessionRow.id).where(SessionRow.label == label, SessionRow.space_id == MemoryRow.space_id)
        found.append(MemoryRow.session_id.in_(sessions.correlate(MemoryRow)))
    if "since" in filters:
        found.append(MemoryRow.created_us >= to_us(filters["since"], "since"))
    if "until" in filters:
        found.append(MemoryRow.created_us < to_us(filters["until"], "until"))
    if "pinned" in filters:
        if not isinstance(filters["pinned"], bool):
            raise InvalidInput(f"pinned must be True or False, not {filters['pinned']!r}")
        found.append(MemoryRow.pinned.is_(filters["pinned"]))
    if "min_uses" in filters:
        used = sa.select(MemoryUsage.memory_id).where(
            MemoryUsage.memory_id == MemoryRow.id, MemoryUsage.uses >= check_int(filters["min_uses"], "min_uses", 0)
        )
        found.append(used.correlate(MemoryRow).exists())
    if "turns" in filters:
        wanted = [check_name(turn, "turn") for turn in filters["turns"]]
        turns = sa.select(Turn.id).where(Turn.uid.in_(wanted), Turn.space_id == MemoryRow.space_id)
        found.append(MemoryRow.turn_id.in_(turns.correlate(MemoryRow)))
    return found


def _tier(tier: object) -> Tier:
    if tier not in (Tier.WARM, Tier.COLD):
        raise InvalidInput(f"tier must be 'warm' or 'cold', not {tier!r}; the store cannot know what is hot elsewhere")
    return Tier(tier)  # type: ignore[arg-type]  # narrowed above


def frequency(now_us: int, half_life_us: int) -> sa.ColumnElement[float]:
    """Usage frequency now, in SQL."""
    age = sa.case((MemoryUsage.score_us < now_us, sa.cast(now_us - MemoryUsage.score_us, sa.Float)), else_=0.0)
    halvings = age / float(half_life_us)
    # PostgreSQL takes a number too small to be told from 0 for an error.
    return sa.case((halvings < 900.0, MemoryUsage.score * sa.func.power(2.0, -halvings)), else_=0.0)


def order_by(sort: str, now_us: int, half_life_us: int) -> list[sa.ColumnElement[Any]]:
    """Order of ``list``: a key, or ``-key`` for largest first; ties in the order of writing, reversed with ``-``.

    Raises:
        InvalidInput: there is no such key.
    """
    keys: dict[str, sa.ColumnElement[Any]] = {
        "created_at": sa.type_coerce(MemoryRow.created_us, sa.BigInteger),
        "last_used": sa.func.coalesce(MemoryUsage.last_us, 0),
        "uses": sa.type_coerce(MemoryUsage.uses, sa.Integer),
        "attention": sa.type_coerce(MemoryUsage.attention, sa.Float),
        "frequency": frequency(now_us, half_life_us),
        "n_tokens": sa.type_coerce(MemoryRow.n_tokens, sa.Integer),
        "kv_bytes": kv_bytes(),
    }
    key = keys.get(sort.removeprefix("-")) if isinstance(sort, str) else None
    if key is None:
        raise InvalidInput(
            f"cannot sort by {sort!r}; use one of {', '.join(keys)}, with '-' in front for largest first"
        )
    tie = sa.type_coerce(MemoryRow.id, sa.BigInteger)
    return [key.desc(), tie.desc()] if sort.startswith("-") else [key.asc(), tie.asc()]


def kv_bytes() -> sa.ColumnElement[int]:
    """Bytes of a memory's payloads, all fingerprints together."""
    total = sa.select(totalled(KVPayload.nbytes))
    return total.where(KVPayload.memory_id == MemoryRow.id).correlate(MemoryRow).scalar_subquery()


def select_rows() -> sa.Select[Any]:
    """Everything that a ``Memory`` shows except tags; the caller adds conditions."""
    return (
        sa.select(
            MemoryRow.__table__,
            MemoryUsage.uses,
            MemoryUsage.attention,
            MemoryUsage.score,
            MemoryUsage.score_us,
            MemoryUsage.last_us,
            MemoryUsage.recent_turns,
            MemoryUsage.recent_reads,
            SessionRow.label,
            Turn.uid.label("turn_uid"),
            kv_bytes().label("kv_bytes"),
        )
        .join(MemoryUsage, MemoryUsage.memory_id == MemoryRow.id)
        .join(Turn, Turn.id == MemoryRow.turn_id)
        .outerjoin(SessionRow, SessionRow.id == MemoryRow.session_id)
    )


# Built once: building an expression costs more than running it.
_KEYS: sa.BindParameter[Any] = sa.bindparam("keys", expanding=True)
_TAGS = sa.select(MemoryTag.memory_id, MemoryTag.tag).where(MemoryTag.memory_id.in_(_KEYS)).order_by(MemoryTag.tag)
_ROWS = select_rows().where(MemoryRow.id.in_(_KEYS))


def tags_of(connection: sa.Connection, memory_ids: Sequence[int]) -> dict[int, list[str]]:
    """Tags by memory key."""
    tags: dict[int, list[str]] = {}
    for start in range(0, len(memory_ids), SLICE):
        some = memory_ids[start : start + SLICE]
        for memory_id, tag in connection.execute(_TAGS, {"keys": some}):
            tags.setdefault(memory_id, []).append(tag)
    return tags


def to_memories(
    connection: sa.Connection, rows: Sequence[AnyRow], scope: Scope, now_us: int, half_life_us: int
) -> list[Memory]:
    """Records for rows of ``select_rows``, in their order."""
    tags = tags_of(connection, [row.id for row in rows])
    return [
        Memory(
            id=row.uid,
            scope=Scope(user=scope.user, agent=scope.agent, session=row.label),
            text=row.text,
            role=Role(row.role),
            turn=row.turn_uid,
            chunk_no=row.chunk_no,
            n_tokens=row.n_tokens,
            created_at=from_us(row.created_us),
            uses=row.uses,
            attention=row.attention,
            frequency=decayed(row.score, row.score_us, now_us, half_life_us),
            last_used=None if row.last_us is None else from_us(row.last_us),
            reads=tuple(Read(at=from_us(at), attention=share) for at, share in row.recent_reads),
            pinned=row.pinned,
            expires_at=None if row.expires_us is None else from_us(row.expires_us),
            tier=Tier.WARM if row.kv_bytes else Tier.COLD,
            kv_bytes=row.kv_bytes,
            tags=tuple(sorted(tags.get(row.id, ()))),
            meta=row.meta,
        )
        for row in rows
    ]


def memories_of(
    connection: sa.Connection, keys: Sequence[int], scope: Scope, now_us: int, half_life_us: int
) -> dict[int, Memory]:
    """Records by the database's own id."""
    wanted = list(dict.fromkeys(keys))
    found: dict[int, Memory] = {}
    for start in range(0, len(wanted), SLICE):
        some = wanted[start : start + SLICE]
        rows = connection.execute(_ROWS, {"keys": some}).all()
        memories = to_memories(connection, rows, scope, now_us, half_life_us)
        found.update({row.id: memory for row, memory in zip(rows, memories, strict=True)})
    return found


def keys_of(connection: sa.Connection, place: Place, ids: Iterable[str]) -> dict[str, AnyRow]:
    """(id, uid, turn_id, session_id, text_sha256) by public id; ids that are not in the scope are absent."""
    wanted = list(dict.fromkeys(ids))
    found: dict[str, AnyRow] = {}
    columns = (MemoryRow.id, MemoryRow.uid, MemoryRow.turn_id, MemoryRow.session_id, MemoryRow.text_sha256)
    for start in range(0, len(wanted), SLICE):
        some = wanted[start : start + SLICE]
        rows = connection.execute(sa.select(*columns).where(*place.conditions(), MemoryRow.uid.in_(some)))
        found.update({row.uid: row for row in rows})
    return found


def keys_under(connection: sa.Connection, place: Place, ids: Sequence[str]) -> set[int]:
    """Row ids of the memories that have these ids, and of all that were cut from turns that have them."""
    found = {row.id for row in keys_of(connection, place, ids).values()}
    for start in range(0, len(ids), SLICE):
        turns = sa.select(Turn.id).where(Turn.space_id == place.space_id, Turn.uid.in_(ids[start : start + SLICE]))
        cut = sa.select(MemoryRow.id).where(*place.conditions(), MemoryRow.turn_id.in_(turns))
        found.update(connection.scalars(cut))
    return found
