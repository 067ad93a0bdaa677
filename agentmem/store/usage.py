"""Use counters: buffered in RAM, credited with the next write, never one transaction per search."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterable

import sqlalchemy as sa

from agentmem.records import Scope
from agentmem.store.eviction import credited
from agentmem.store.inputs import now_us
from agentmem.store.places import find_place
from agentmem.store.schema import MemoryRow, MemoryUsage

FLUSH_AFTER = 5.0
"""Seconds after which buffered uses are written even when no other write comes along."""
RECENT_TURNS = 8
"""Turns remembered per memory, so that reads of one turn that are reported twice count once."""

RECENT_READS = 20
"""Reads kept per memory with their time and attention share, to be looked at; what is older is in the sums."""

UseKey = tuple[Scope, str, str]  # scope, memory id, turn id


class UseBuffer:
    """Uses that are not in the database yet. Thread-safe; a crash loses a few counts and nothing else."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._uses: dict[UseKey, float] = {}
        self._oldest: float | None = None

    def record(self, keys: Iterable[tuple[UseKey, float]]) -> None:
        """Note reads. The same memory in the same turn is one use, with the larger share."""
        with self._lock:
            for key, share in keys:
                self._uses[key] = max(share, self._uses.get(key, 0.0))
            if self._uses and self._oldest is None:
                self._oldest = time.monotonic()

    @property
    def due(self) -> bool:
        """True when the oldest use has waited long enough."""
        oldest = self._oldest
        return oldest is not None and time.monotonic() - oldest > FLUSH_AFTER

    def __len__(self) -> int:
        return len(self._uses)

    def take(self) -> dict[UseKey, float]:
        """Hand out everything and be empty. After a failed write, ``record`` it again."""
        with self._lock:
            uses, self._uses, self._oldest = self._uses, {}, None
        return uses

    def clear_in_child(self) -> None:
        """After a fork: the parent writes these."""
        self._lock = threading.Lock()
        self._uses, self._oldest = {}, None


def turn_digest(turn: str) -> str:
    """A short digest: usage rows must not keep the ids of turns that may be forgotten."""
    return hashlib.sha256(turn.encode()).hexdigest()[:16]


def credit(connection: sa.Connection, uses: dict[UseKey, float], half_life_us: int) -> None:
    """Write buffered uses. Memories that are gone, and turns already credited, are passed over."""
    now = now_us()
    for (scope, memory, turn), share in uses.items():
        place = find_place(connection, scope)
        if place is None:
            continue
        row = connection.execute(
            sa.select(MemoryUsage.__table__)
            .join(MemoryRow, MemoryRow.id == MemoryUsage.memory_id)
            .where(*place.conditions(), MemoryRow.uid == memory)
        ).one_or_none()
        digest = turn_digest(turn)
        if row is None or digest in row.recent_turns:
            continue
        connection.execute(
            sa.update(MemoryUsage)
            .where(MemoryUsage.memory_id == row.memory_id)
            .values(
                uses=row.uses + 1,
                attention=row.attention + share,
                score=credited(row.score, row.score_us, now, half_life_us, share),
                score_us=max(now, row.score_us),
                last_us=now,
                recent_turns=[*row.recent_turns, digest][-RECENT_TURNS:],
                recent_reads=[*row.recent_reads, [now, round(share, 6)]][-RECENT_READS:],
            )
        )
