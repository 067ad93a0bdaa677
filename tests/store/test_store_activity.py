"""What the store tells over time: each memory's newest reads, and what came and went; on both engines."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
import sqlalchemy as sa
from store_world import ADA, BOB, attach, new

from agentmem.records import Scope
from agentmem.store import ScopedMemories, Store
from agentmem.store.activity import MOST_PERIODS, WIDTHS, activity
from agentmem.store.inputs import to_us
from agentmem.store.places import see_all
from agentmem.store.schema import EventRow
from agentmem.store.usage import RECENT_READS

HOUR = timedelta(hours=1)


def backdate(store: Store, id: str, action: str, at: datetime) -> None:
    """As if an event had happened then."""
    found = EventRow.memory_uid == id, EventRow.action == action
    with store.write() as connection:
        see_all(connection)
        connection.execute(sa.update(EventRow).where(*found).values(at_us=to_us(at, "at")))


def test_reads_are_kept_with_their_share(ada: ScopedMemories) -> None:
    (memory,) = ada.add([new("one")])
    assert memory.reads == ()
    before = datetime.now(UTC)
    for turn, share in (("a", 0.25), ("b", 0.125), ("b", 0.125), ("c", 0.5)):
        ada.record_uses([(memory.id, share)], turn=turn)
    memory = ada.get(memory.id)
    assert [read.attention for read in memory.reads] == [0.25, 0.125, 0.5]
    assert all(before <= read.at <= datetime.now(UTC) for read in memory.reads)
    assert sum(read.attention for read in memory.reads) == pytest.approx(memory.attention)
    assert ada.list()[0].reads == memory.reads


def test_only_the_newest_reads_are_kept(ada: ScopedMemories) -> None:
    (memory,) = ada.add([new("one")])
    for turn in range(RECENT_READS + 5):
        ada.record_uses([(memory.id, turn / 100)], turn=f"t{turn}")
    memory = ada.get(memory.id)
    assert memory.uses == RECENT_READS + 5
    assert [read.attention for read in memory.reads] == [turn / 100 for turn in range(5, RECENT_READS + 5)]


def test_an_export_of_before_there_were_reads_still_loads(ada: ScopedMemories, store: Store, tmp_path: Path) -> None:
    (memory,) = ada.add([new("one")])
    ada.record_uses([(memory.id, 0.5)], turn="t")
    path = tmp_path / "old.jsonl"
    ada.export(path)
    header, line = path.read_text(encoding="utf-8").splitlines()
    fields = json.loads(line)
    del fields["recent_reads"]
    path.write_text(f"{header}\n{json.dumps(fields)}\n", encoding="utf-8")
    bob = store.scope(BOB)
    assert bob.load(path) == 1
    assert (bob.get(memory.id).uses, bob.get(memory.id).reads) == (1, ())


def test_every_period_tells_what_came_and_went(ada: ScopedMemories, store: Store) -> None:
    now = datetime.now(UTC)
    memories = ada.add([new(f"number {n}") for n in range(6)])
    for memory, hours in zip(memories, (30, 30, 20, 10, 0, 0), strict=True):
        backdate(store, memory.id, "added", now - hours * HOUR)
    ada.delete(memories[0].id)
    backdate(store, memories[0].id, "deleted", now - 10 * HOUR)
    attach(ada, memories[1], b"k" * 100)
    ada.prune(max_bytes=0)
    ada.pin(memories[5].id)
    ada.prune(max_memories=4)
    told = activity(store, ADA)
    assert told.period_seconds == 3600
    assert all(later.start - earlier.start == HOUR for earlier, later in pairwise(told.periods))
    assert told.periods[0].start <= now - 30 * HOUR < told.periods[0].start + HOUR
    by_hour = {(now - period.start) // HOUR: period for period in told.periods}
    assert (by_hour[30].added, by_hour[30].memories) == (2, 2)
    assert (by_hour[20].added, by_hour[20].memories) == (1, 3)
    assert (by_hour[10].added, by_hour[10].deleted, by_hour[10].memories) == (1, 1, 3)
    assert (by_hour[0].added, by_hour[0].evicted, by_hour[0].kv_dropped) == (2, 1, 1)
    assert by_hour[0].memories == ada.count() == 4


@pytest.mark.parametrize("seconds", [1, 59 * 60, 86_400, 80 * 86_400, 900 * 86_400])
def test_any_stretch_of_time_fits(ada: ScopedMemories, store: Store, seconds: int) -> None:
    first, _ = ada.add([new("first"), new("last")])
    backdate(store, first.id, "added", datetime.now(UTC) - timedelta(seconds=seconds))
    told = activity(store, ADA)
    assert told.period_seconds in WIDTHS
    assert 1 <= len(told.periods) <= MOST_PERIODS
    assert len(told.periods) >= MOST_PERIODS / 8 or told.period_seconds == WIDTHS[0]
    assert told.periods[-1].memories == 2


def test_where_the_audit_begins_later_the_count_is_still_true(ada: ScopedMemories, store: Store) -> None:
    ada.add([new("one"), new("two")])
    with store.write() as connection:
        see_all(connection)
        connection.execute(sa.delete(EventRow))
    ada.add([new("three")])
    assert activity(store, ADA).periods[-1].memories == 3


def test_a_clock_that_was_ahead_hides_nothing(ada: ScopedMemories, store: Store) -> None:
    one, _ = ada.add([new("one"), new("two")])
    backdate(store, one.id, "added", datetime.now(UTC) + timedelta(days=400))
    told = activity(store, ADA)
    assert sum(period.added for period in told.periods) == 2
    assert told.periods[-1].memories == 2


def test_uses_are_spread_over_doubling_steps(ada: ScopedMemories, store: Store) -> None:
    memories = ada.add([new(f"number {n}") for n in range(5)])
    for memory, uses in zip(memories, (0, 0, 1, 3, 9), strict=True):
        for turn in range(uses):
            ada.record_uses([(memory.id, 0.1)], turn=f"{memory.id} {turn}")
    spread = [(each.least, each.most, each.memories) for each in activity(store, ADA).uses]
    assert spread == [(0, 0, 2), (1, 1, 1), (2, 3, 1), (4, 7, 0), (8, 15, 1)]


def test_activity_is_of_one_scope(ada: ScopedMemories, store: Store) -> None:
    ada.add([new("hers", session="monday"), new("hers too")])
    store.scope(BOB).add([new("his")])
    for scope, count in ((ADA, 2), (BOB, 1), (Scope(user="ada", session="monday"), 1)):
        told = activity(store, scope)
        assert sum(period.added for period in told.periods) == count
        assert sum(each.memories for each in told.uses) == count
    nobody = activity(store, Scope(user="nobody"))
    assert nobody.periods == nobody.uses == ()
