"""Carries out what ``eviction.py`` decides: reads candidates, drops KV or deletes memories, writes the audit."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import sqlalchemy as sa

from agentmem.records import Pruned, PruneReport
from agentmem.store import writing
from agentmem.store.eviction import (
    Candidate,
    EvictionPolicy,
    decayed,
    in_order,
    low_water,
    over_count,
    over_count_memlong,
    over_kv,
    unused,
    with_streams,
)
from agentmem.store.places import Place
from agentmem.store.rows import SLICE
from agentmem.store.schema import KVPayload, MemoryRow, MemoryUsage, SessionRow, Space, StreamRow

_log = logging.getLogger("agentmem.store")

Chosen = list[tuple[Candidate, Pruned]]


def candidates(
    connection: sa.Connection, conditions: Sequence[sa.ColumnElement[bool]], policy: EvictionPolicy, now: int
) -> list[Candidate]:
    """Every memory that fulfils ``conditions``, as policies see it."""
    kv = sa.select(KVPayload.memory_id, sa.func.sum(KVPayload.nbytes).label("nbytes"))
    sums = kv.group_by(KVPayload.memory_id).subquery()
    rows = connection.execute(
        sa.select(
            MemoryRow.id,
            MemoryRow.uid,
            MemoryRow.created_us,
            MemoryRow.pinned,
            MemoryUsage.score,
            MemoryUsage.score_us,
            MemoryUsage.last_us,
            MemoryUsage.uses,
            sums.c.nbytes,
        )
        .join(MemoryUsage, MemoryUsage.memory_id == MemoryRow.id)
        .outerjoin(sums, sums.c.memory_id == MemoryRow.id)
        .where(*conditions)
    )
    return [
        Candidate(
            key=row.id,
            id=row.uid,
            frequency=decayed(row.score, row.score_us, now, policy.half_life_us),
            created_us=row.created_us,
            last_us=row.last_us,
            kv_bytes=row.nbytes or 0,
            pinned=row.pinned,
            uses=row.uses,
        )
        for row in rows
    ]


def streams(connection: sa.Connection, conditions: Sequence[sa.ColumnElement[bool]]) -> list[Candidate]:
    """Every stream that fulfils ``conditions`` and takes room."""
    rows = connection.execute(
        sa.select(StreamRow.id, SessionRow.label, StreamRow.created_us, StreamRow.updated_us, StreamRow.nbytes)
        .join(SessionRow, SessionRow.id == StreamRow.session_id)
        .where(*conditions, StreamRow.nbytes > 0)
    )
    return [
        Candidate(
            key=row.id,
            id=row.label,
            frequency=0.0,
            created_us=row.created_us,
            last_us=row.updated_us,
            kv_bytes=row.nbytes,
            pinned=False,
            stream=True,
        )
        for row in rows
    ]


def enforce(
    connection: sa.Connection,
    policy: EvictionPolicy,
    space_id: int | None,
    now: int,
    *,
    dry_run: bool = False,
    keep: int | None = None,
) -> PruneReport:
    """Bring spaces (one, or all), then the whole, within the policy's budgets. The stream ``keep`` does not go."""
    spaces = [space_id] if space_id is not None else list(connection.scalars(sa.select(Space.id)))
    pruned: list[Pruned] = []
    gone: set[int] = set()
    cold: set[int] = set()
    dropped: set[int] = set()
    levels: list[tuple[int | None, int | None, int | None, str]] = [
        (s, policy.space_memories, policy.space_kv_bytes, "space") for s in spaces
    ]
    levels.append((None, policy.total_memories, policy.total_kv_bytes, "total"))
    for space, most_memories, most_bytes, level in levels:
        rows = [] if space is None else [MemoryRow.space_id == space]
        memories = _count(connection, rows) if most_memories is not None else 0
        kv_bytes = _kv_bytes(connection, space) if most_bytes is not None else 0
        if memories <= (most_memories or 0) and kv_bytes <= (most_bytes or 0):
            continue
        # A dry run changes nothing, so what an earlier level chose has to be taken off here.
        left = [c for c in candidates(connection, rows, policy, now) if c.key not in gone]
        left = [_without_kv(c) if c.key in cold else c for c in left]
        of_space = [] if space is None else [StreamRow.space_id == space]
        held = [c for c in streams(connection, of_space) if c.key not in dropped]
        chosen = _within(left, held, most_memories, most_bytes, policy, now, level, keep)
        if not dry_run:
            _carry_out(connection, chosen, now)
        gone.update(c.key for c, p in chosen if p.action == "delete")
        cold.update(c.key for c, p in chosen if p.action == "drop_kv")
        dropped.update(c.key for c, p in chosen if p.action == "drop_stream")
        pruned.extend(p for _, p in chosen)
    if pruned and not dry_run:
        _log.info("evicted: %d memories deleted, KV of %d and %d streams dropped", len(gone), len(cold), len(dropped))
    kept = _count(connection, []) - (len(gone) if dry_run else 0)
    return PruneReport(dry_run=dry_run, pruned=tuple(pruned), freed_kv_bytes=sum(p.kv_bytes for p in pruned), kept=kept)


def _within(
    left: list[Candidate],
    held: list[Candidate],
    most_memories: int | None,
    most_bytes: int | None,
    policy: EvictionPolicy,
    now: int,
    level: str,
    keep: int | None,
) -> Chosen:
    order = in_order(left, policy, now)
    chosen: Chosen = []
    if most_memories is not None and policy.order == "memlong":
        chosen += over_count_memlong(left, most_memories, policy, now, f"{level} memory budget")
    elif most_memories is not None:
        target = low_water(most_memories)
        chosen += over_count(order, most_memories, target, len(left), f"{level} memory budget", policy.order)
    gone = {c.key for c, _ in chosen}
    if most_bytes is not None:
        used = sum(c.kv_bytes for c in left if c.key not in gone) + sum(c.kv_bytes for c in held)
        rest = [c for c in order if c.key not in gone]
        rest = with_streams(rest, [c for c in held if c.key != keep], policy, now)
        chosen += over_kv(rest, most_bytes, low_water(most_bytes), used, f"{level} KV budget", policy.order)
    return chosen


def prune(
    connection: sa.Connection,
    place: Place,
    policy: EvictionPolicy,
    now: int,
    *,
    max_bytes: int | None,
    max_memories: int | None,
    unused_us: int | None,
    dry_run: bool,
) -> PruneReport:
    """A prune that someone asked for: exactly to the limits given, within one scope."""
    everything = candidates(connection, place.conditions(), policy, now)
    chosen = [] if unused_us is None else unused(everything, policy, now, unused_us)
    gone = {c.key for c, _ in chosen}
    if max_memories is not None:
        order = [c for c in in_order(everything, policy, now) if c.key not in gone]
        left = len(everything) - len(gone)
        chosen += over_count(order, max_memories, max_memories, left, "limit of memories", policy.order)
        gone = {c.key for c, _ in chosen}
    if max_bytes is not None:
        order = [c for c in in_order(everything, policy, now) if c.key not in gone]
        held = streams(connection, place.stream_conditions())
        used = sum(c.kv_bytes for c in everything if c.key not in gone) + sum(c.kv_bytes for c in held)
        order = with_streams(order, held, policy, now)
        chosen += over_kv(order, max_bytes, max_bytes, used, "KV limit", policy.order)
    if not dry_run:
        _carry_out(connection, chosen, now)
    pruned = tuple(p for _, p in chosen)
    return PruneReport(
        dry_run=dry_run,
        pruned=pruned,
        freed_kv_bytes=sum(p.kv_bytes for p in pruned),
        kept=len(everything) - len(gone),
    )


def _carry_out(connection: sa.Connection, chosen: Chosen, now: int) -> None:
    writing.drop_streams(connection, StreamRow.id.in_([c.key for c, p in chosen if p.action == "drop_stream"]))
    chosen = [(c, p) for c, p in chosen if p.action != "drop_stream"]
    sessions: dict[int, tuple[int, int | None]] = {}
    keys = [c.key for c, _ in chosen]
    for start in range(0, len(keys), SLICE):
        some = MemoryRow.id.in_(keys[start : start + SLICE])
        for key, space_id, session_id in connection.execute(
            sa.select(MemoryRow.id, MemoryRow.space_id, MemoryRow.session_id).where(some)
        ):
            sessions[key] = (space_id, session_id)
    writing.drop_kv(connection, [c.key for c, p in chosen if p.action == "drop_kv"])
    writing.forget(connection, [c.key for c, p in chosen if p.action == "delete"])
    for candidate, pruned in chosen:
        space_id, session_id = sessions[candidate.key]
        action = "evicted" if pruned.action == "delete" else "kv_dropped"
        writing.note(connection, space_id, [(session_id, candidate.id)], action, pruned.reason, now)


def _without_kv(candidate: Candidate) -> Candidate:
    return Candidate(**{**vars(candidate), "kv_bytes": 0})


def _count(connection: sa.Connection, conditions: Sequence[sa.ColumnElement[bool]]) -> int:
    return connection.scalar(sa.select(sa.func.count(MemoryRow.id)).where(*conditions)) or 0


def _kv_bytes(connection: sa.Connection, space_id: int | None) -> int:
    """Of memories and streams, in a space or in all."""
    total = 0
    for table in (KVPayload, StreamRow):
        query = sa.select(sa.func.coalesce(sa.func.sum(table.nbytes), 0))
        total += connection.scalar(query if space_id is None else query.where(table.space_id == space_id)) or 0
    return total
