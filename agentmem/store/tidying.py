"""Carries out what ``eviction.py`` decides: reads candidates, drops KV or deletes memories, writes the audit."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from agentmem.records import Pruned, PruneReport
from agentmem.store import tally, writing
from agentmem.store.eviction import (
    Candidate,
    EvictionPolicy,
    count_target,
    decayed,
    in_order,
    kv_target,
    over_count,
    over_count_memlong,
    over_kv,
    unused,
    with_streams,
)
from agentmem.store.places import Place, lock_spaces, see_all
from agentmem.store.rows import HAS_KV, SLICE, frequency, kv_bytes
from agentmem.store.schema import EventRow, MemoryRow, MemoryUsage, SessionRow, StreamRow, Tally

_log = logging.getLogger("agentmem.store")

Chosen = list[tuple[Candidate, Pruned]]


def candidates(
    connection: sa.Connection, conditions: Sequence[sa.ColumnElement[bool]], policy: EvictionPolicy, now: int
) -> list[Candidate]:
    """Every memory that fulfils ``conditions``, as policies see it."""
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
            kv_bytes().label("nbytes"),
        )
        .join(MemoryUsage, MemoryUsage.memory_id == MemoryRow.id)
        .where(*conditions)
    )
    return [
        Candidate(
            key=row.id,
            id=row.uid,
            frequency=decayed(row.score, row.score_us, now, policy.half_life_us),
            created_us=row.created_us,
            last_us=row.last_us,
            kv_bytes=row.nbytes,
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


def in_turn(
    connection: sa.Connection,
    conditions: Sequence[sa.ColumnElement[bool]],
    policy: EvictionPolicy,
    now: int,
    *,
    warm: bool = False,
    without: Set[int] = frozenset(),
    most: int | None = None,
) -> tuple[int, Iterator[Candidate]]:
    """How many memories may go, and which, first to go first: ``eviction.in_order``, sorted by the database.

    Only those that are drawn become candidates, so a few can be evicted of many. MemLong's order is one of ranks among
    all, and is not spared that.

    Args:
        connection: open; nothing may be written while the iterator is drawn from.
        conditions: on memories.
        policy: which order.
        now: in microseconds.
        warm: only memories with KV.
        without: keys to leave out.
        most: how many will be drawn; None: it depends on them.
    """
    if warm:
        conditions = [*conditions, HAS_KV]
    if policy.order == "memlong":
        every = [
            c for c in in_order(candidates(connection, conditions, policy, now), policy, now) if c.key not in without
        ]
        return len(every), iter(every)
    may_go = [*conditions, MemoryRow.pinned.is_(False)]
    query = (
        sa.select(MemoryRow.id)
        .join(MemoryUsage, MemoryUsage.memory_id == MemoryRow.id)
        .where(*may_go)
        .order_by(*_order(policy, now))
    )
    if most is None or without:
        keys = [key for key in connection.scalars(query) if key not in without]
        among = len(keys)
    else:  # the rest is not even sorted
        keys = list(connection.scalars(query.limit(most)))
        among = connection.scalar(sa.select(sa.func.count()).select_from(MemoryRow).where(*may_go)) or 0
    return among, _drawn(connection, keys, policy, now)


def _order(policy: EvictionPolicy, now: int) -> list[sa.ColumnElement[Any]]:
    written, key = sa.type_coerce(MemoryRow.created_us, sa.BigInteger), sa.type_coerce(MemoryRow.id, sa.BigInteger)
    if policy.order == "fifo":
        return [written, key]
    if policy.order == "lru":
        return [sa.case((MemoryUsage.last_us > MemoryRow.created_us, MemoryUsage.last_us), else_=written), key]
    # As ``least_frequent``: a date far in the future is not new either.
    new = sa.case((sa.func.abs(MemoryRow.created_us - now) < policy.grace_us, 1), else_=0)
    return [new, frequency(now, policy.half_life_us), written, key]


def _drawn(connection: sa.Connection, keys: Sequence[int], policy: EvictionPolicy, now: int) -> Iterator[Candidate]:
    for start in range(0, len(keys), SLICE):
        some = keys[start : start + SLICE]
        found = {c.key: c for c in candidates(connection, [MemoryRow.id.in_(some)], policy, now)}
        yield from (found[key] for key in some)


@dataclass
class _Level:
    """Budgets of a space, or of all (``space_id`` None), and what is held there."""

    space_id: int | None
    most_memories: int | None
    most_bytes: int | None
    held: tally.Totals

    @property
    def name(self) -> str:
        return "total" if self.space_id is None else "space"

    @property
    def over_memories(self) -> bool:
        return self.most_memories is not None and self.held.memories > self.most_memories

    @property
    def over_bytes(self) -> bool:
        return self.most_bytes is not None and self.held.kv_bytes > self.most_bytes


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
    see_all(connection)
    spaces = [space_id] if space_id is not None else connection.scalars(sa.select(Tally.space_id)).all()
    chosen: Chosen = []
    for space in [*spaces, None]:
        held = tally.totals(connection, space)
        if space is None:
            level = _Level(None, policy.total_memories, policy.total_kv_bytes, held)
            if dry_run:  # nothing has gone, so what the spaces chose is taken off here
                level.held = _after(held, chosen)
        else:
            level = _Level(space, policy.space_memories, policy.space_kv_bytes, held)
        if not level.over_memories and not level.over_bytes:
            continue
        if None in (space, space_id) and not dry_run:
            lock_spaces(connection)
            level.held = tally.totals(connection, space)  # another process may have evicted while this one waited
            if not level.over_memories and not level.over_bytes:
                continue
        more = _within(connection, level, policy, now, keep, chosen if dry_run else [])
        if not dry_run:
            _carry_out(connection, more, now)
        chosen += more
    gone, cold, dropped = (_keys(chosen, action) for action in ("delete", "drop_kv", "drop_stream"))
    if chosen and not dry_run:
        _log.info("evicted: %d memories deleted, KV of %d and %d streams dropped", len(gone), len(cold), len(dropped))
    kept = tally.totals(connection, None).memories - (len(gone) if dry_run else 0)
    pruned = tuple(p for _, p in chosen)
    return PruneReport(dry_run=dry_run, pruned=pruned, freed_kv_bytes=sum(p.kv_bytes for p in pruned), kept=kept)


def _keys(chosen: Chosen, action: str) -> set[int]:
    return {c.key for c, p in chosen if p.action == action}


def _after(held: tally.Totals, chosen: Chosen) -> tally.Totals:
    freed = sum(p.kv_bytes for _, p in chosen)
    return tally.Totals(held.memories - len(_keys(chosen, "delete")), held.kv_bytes - freed)


def _within(
    connection: sa.Connection, level: _Level, policy: EvictionPolicy, now: int, keep: int | None, before: Chosen
) -> Chosen:
    """What has to go from a level; ``before`` has been chosen already, and is still there."""
    conditions = [] if level.space_id is None else [MemoryRow.space_id == level.space_id]
    gone, cold, dropped = (_keys(before, action) for action in ("delete", "drop_kv", "drop_stream"))
    chosen: Chosen = []
    if level.most_memories is not None and level.over_memories:
        name = f"{level.name} memory budget"
        if policy.order == "memlong":
            left = [c for c in candidates(connection, conditions, policy, now) if c.key not in gone]
            chosen = over_count_memlong(left, level.most_memories, policy, now, name)
        else:
            most, held = level.most_memories, level.held.memories
            target = count_target(most)
            among, turn = in_turn(connection, conditions, policy, now, without=gone, most=held - target)
            fitting = (_without_kv(c) if c.key in cold else c for c in turn)
            chosen = over_count(fitting, most, target, held, name, policy.order, among)
        level.held = _after(level.held, chosen)
    if level.most_bytes is not None and level.over_bytes:
        without = gone | cold | _keys(chosen, "delete")
        among, turn = in_turn(connection, conditions, policy, now, warm=True, without=without)
        of_space = [] if level.space_id is None else [StreamRow.space_id == level.space_id]
        held_streams = [c for c in streams(connection, of_space) if c.key not in dropped and c.key != keep]
        rest = with_streams(turn, held_streams, policy, now)
        most, used, name = level.most_bytes, level.held.kv_bytes, f"{level.name} KV budget"
        chosen = chosen + over_kv(rest, most, kv_target(most, policy), used, name, policy.order, among)
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
        every = with_streams(order, held, policy, now)
        chosen += over_kv(every, max_bytes, max_bytes, used, "KV limit", policy.order)
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
    rows = [
        {
            "space_id": sessions[candidate.key][0],
            "session_id": sessions[candidate.key][1],
            "memory_uid": candidate.id,
            "at_us": now,
            "action": "evicted" if pruned.action == "delete" else "kv_dropped",
            "reason": pruned.reason,
        }
        for candidate, pruned in chosen
    ]
    if rows:
        connection.execute(sa.insert(EventRow), rows)


def _without_kv(candidate: Candidate) -> Candidate:
    return replace(candidate, kv_bytes=0)
