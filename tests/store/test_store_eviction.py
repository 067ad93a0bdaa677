"""Eviction: who goes, in what order, how far, and why; and use counters that are credited once."""

from __future__ import annotations

from datetime import timedelta

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from store_world import ADA, BOB, EMBEDDER, Where, attach, new

from agentmem.errors import InvalidInput, NotFound
from agentmem.records import Tier
from agentmem.store import EvictionPolicy, ScopedMemories, Store, usage
from agentmem.store.eviction import (
    Candidate,
    credited,
    decayed,
    least_frequent,
    low_water,
    over_count,
    over_kv,
    unused,
)
from agentmem.store.inputs import now_us
from agentmem.store.places import see_all

DAY = 86_400_000_000
POLICY = EvictionPolicy(half_life=timedelta(days=10), grace=timedelta(days=1))
NOW = 1000 * DAY


def candidate(key: int, **more: object) -> Candidate:
    fields = {"frequency": 0.0, "created_us": 0, "last_us": None, "kv_bytes": 10, "pinned": False} | more
    return Candidate(key=key, id=str(key), **fields)  # type: ignore[arg-type]


def test_frequency_halves_with_every_half_life() -> None:
    assert decayed(8.0, 0, 10 * DAY, POLICY.half_life_us) == pytest.approx(4.0)
    assert decayed(8.0, 0, 30 * DAY, POLICY.half_life_us) == pytest.approx(1.0)
    assert decayed(8.0, 5 * DAY, 0, POLICY.half_life_us) == 8.0  # a clock set back
    assert credited(8.0, 0, 10 * DAY, POLICY.half_life_us, 0.25) == pytest.approx(5.25)


def test_order_is_by_frequency_then_age_with_new_ones_last_and_pinned_ones_never() -> None:
    candidates = [
        candidate(1, frequency=2.0),
        candidate(2, frequency=0.5, created_us=7),
        candidate(3, frequency=0.5, created_us=5),
        candidate(4, frequency=0.0, created_us=NOW - DAY // 2),
        candidate(5, frequency=0.0, pinned=True),
    ]
    assert [c.key for c in least_frequent(candidates, POLICY, NOW)] == [3, 2, 1, 4]


CANDIDATES = st.lists(
    st.builds(
        Candidate,
        key=st.integers(1, 10**6),
        id=st.just("x"),
        frequency=st.floats(0, 100),
        created_us=st.integers(0, NOW),
        last_us=st.none() | st.integers(0, NOW),
        kv_bytes=st.integers(0, 1000),
        pinned=st.booleans(),
    ),
    max_size=20,
    unique_by=lambda c: c.key,
)


@given(candidates=CANDIDATES, budget=st.integers(0, 5000))
def test_eviction_stops_as_soon_as_it_may(candidates: list[Candidate], budget: int) -> None:
    order = least_frequent(candidates, POLICY, NOW)
    used = sum(c.kv_bytes for c in candidates)
    gone = [c for c, _ in over_kv(order, budget, low_water(budget), used, "KV")]
    assert not any(c.pinned for c in gone)
    left = used - sum(c.kv_bytes for c in gone)
    if used <= budget:
        assert gone == []
    else:
        untouchable = sum(c.kv_bytes for c in candidates if c.pinned)
        assert left <= low_water(budget) or left == untouchable
        assert left + gone[-1].kv_bytes > low_water(budget) if gone else left == untouchable
    most = budget % 20
    dropped = over_count(order, most, low_water(most), len(candidates), "count")
    expected = max(0, len(candidates) - low_water(most)) if len(candidates) > most else 0
    assert [c for c, _ in dropped] == order[:expected]


def test_reasons_say_why() -> None:
    ((_, pruned),) = over_kv([candidate(1, frequency=0.125, kv_bytes=2000)], 1000, 950, 2000, "space KV budget")
    assert pruned.reason == "frequency 0.125, least of 1; space KV budget of 1,000 bytes exceeded by 1,000"
    day = candidate(1, kv_bytes=2000, created_us=1_700_000_000_000_000, last_us=1_700_000_060_000_000, uses=3)
    words = {"lru": "last used 2023-11-14 22:14:20, longest ago", "fifo": "written 2023-11-14 22:13:20, oldest"}
    words["memlong"] = "3 uses, written 2023-11-14 22:13:20, first"
    for by, said in words.items():
        ((_, pruned),) = over_kv([day], 1000, 950, 2000, "KV", by)  # type: ignore[arg-type]  # names of orders
        assert pruned.reason == f"{said} of 1; KV of 1,000 bytes exceeded by 1,000"
        ((_, pruned),) = over_count([day], 0, 0, 1, "count", by)  # type: ignore[arg-type]
        assert pruned.reason == f"{said} of 1; count of 0 exceeded by 1"
    ((_, idle),) = unused([candidate(1), candidate(2, pinned=True)], POLICY, NOW, 30 * DAY)
    assert idle.reason == "unused for 1000.0 days, limit 30.0 days; frequency 0"


def test_small_budgets_are_kept_exactly_and_large_ones_leave_some_room() -> None:
    assert [low_water(n) for n in (0, 1, 10, 19)] == [0, 1, 10, 19]
    assert low_water(1000) == 950


def open_with(where: Where, **budgets: object) -> Store:
    policy = EvictionPolicy(grace=timedelta(0), **budgets)  # type: ignore[arg-type]
    return Store.open(where, embedder=EMBEDDER, eviction=policy)


def test_over_the_kv_budget_the_least_used_go_cold_and_keep_their_text(where: Where) -> None:
    with open_with(where, space_kv_bytes=1_000_000) as store:
        handle = store.scope(ADA)
        memories = handle.add([new(f"memory {i}") for i in range(4)])
        handle.pin(memories[0].id)
        handle.record_uses([(memories[1].id, 0.9)], turn="t")
        for memory in memories:
            assert attach(handle, memory, b"k" * 300_000)
        assert [m.tier for m in handle.list(sort="created_at")] == [Tier.WARM, Tier.WARM, Tier.COLD, Tier.WARM]
        last = handle.history(memories[2].id)[-1]
        assert last.action == "kv_dropped"
        assert last.reason.startswith("frequency 0, least of 3; space KV budget of 1,000,000 bytes exceeded by 200,000")
        assert store.files is None or len(list(store.files.walk())) == 3
        assert handle.search("memory 2")[0].memory.id == memories[2].id
        assert store.verify().ok


def test_over_the_memory_budget_the_least_used_leave_with_an_audit_line(where: Where) -> None:
    with open_with(where, space_memories=3) as store:
        handle = store.scope(ADA)
        one, _, three = handle.add([new("one"), new("two", pinned=True), new("three")])
        handle.record_uses([(one.id, 0.5)], turn="t")
        (four,) = handle.add([new("four")])
        assert {m.text for m in handle.list()} == {"one", "two", "four"}
        with pytest.raises(NotFound):
            handle.get(three.id)
        assert [e.action for e in handle.history(three.id)] == ["added", "evicted"]
        assert handle.search("three") == []
        assert four.text == "four"
        assert store.verify().ok


def test_one_space_over_its_budget_costs_another_nothing_but_the_total_is_shared(where: Where) -> None:
    with open_with(where, space_memories=2) as store:
        ada, bob = store.scope(ADA), store.scope(BOB)
        bob.add([new("bob's only one")])
        ada.add([new(f"ada {i}") for i in range(5)])
        assert (ada.count(), bob.count()) == (2, 1)
    with open_with(where, total_memories=2) as store:
        plan = store.evict(dry_run=True)
        assert (plan.dry_run, len(plan.pruned), plan.kept) == (True, 1, 2)
        assert store.stats().memories == 3
        assert store.evict().pruned == plan.pruned
        assert store.scope(BOB).count() == 0  # written first, read as seldom
        assert store.stats().memories == 2
        assert store.evict().pruned == ()


def test_new_memories_are_spared_while_older_ones_can_go(where: Where) -> None:
    with Store.open(where, embedder=EMBEDDER) as store:
        (old,) = store.scope(ADA).add([new("old and famous")])
        store.scope(ADA).record_uses([(old.id, 1.0)], turn="t")
        with store.write() as connection:
            see_all(connection)
            connection.execute(sa.text("UPDATE memory SET created_us = 0"))
    policy = EvictionPolicy(space_memories=1)
    with Store.open(where, embedder=EMBEDDER, eviction=policy) as store:
        handle = store.scope(ADA)
        handle.add([new("brand new")])
        assert [m.text for m in handle.list()] == ["brand new"]


def test_prune_does_what_its_dry_run_said(ada: ScopedMemories) -> None:
    memories = ada.add([new(f"memory {i}") for i in range(6)])
    for memory in memories:
        attach(ada, memory, b"k" * 100)
    ada.pin(memories[0].id)
    ada.record_uses([(memories[1].id, 0.5)], turn="t")
    plan = ada.prune(max_memories=4, max_bytes=200, dry_run=True)
    assert plan.dry_run
    assert [(p.id, p.action) for p in plan.pruned] == [
        (memories[2].id, "delete"),
        (memories[3].id, "delete"),
        (memories[4].id, "drop_kv"),
        (memories[5].id, "drop_kv"),
    ]
    assert (plan.freed_kv_bytes, plan.kept) == (400, 4)
    assert ada.stats().kv_bytes == 600
    done = ada.prune(max_memories=4, max_bytes=200)
    assert done.pruned == plan.pruned
    assert (ada.count(), ada.stats().kv_bytes) == (4, 200)
    assert ada.prune(max_memories=4, max_bytes=200).pruned == ()


def test_prune_of_the_unused(ada: ScopedMemories, store: Store) -> None:
    old, read, pinned, fresh = ada.add([new(t) for t in ("old", "read", "pinned", "fresh")])
    with store.write() as connection:
        see_all(connection)
        long_ago = now_us() - 40 * DAY
        query = sa.text("UPDATE memory SET created_us = :t WHERE uid != :fresh")
        connection.execute(query, {"t": long_ago, "fresh": fresh.id})
    ada.pin(pinned.id)
    ada.record_uses([(read.id, 0.1)], turn="t")
    assert ada.prune(unused_for="8w").pruned == ()
    for limit in ("30d", timedelta(days=30), "720h"):
        assert [p.id for p in ada.prune(unused_for=limit, dry_run=True).pruned] == [old.id]
    assert ada.prune(unused_for="30d").kept == 3
    assert ada.count() == 3


@pytest.mark.parametrize(
    "how",
    [
        {"max_bytes": -1},
        {"max_memories": 1.5},
        {"unused_for": "soon"},
        {"unused_for": "30"},
        {"unused_for": "-3d"},
        {"unused_for": 30},
        {"unused_for": timedelta(days=-1)},
    ],
)
def test_bad_prunes_are_refused(ada: ScopedMemories, how: dict[str, object]) -> None:
    ada.add([new("safe")])
    with pytest.raises(InvalidInput):
        ada.prune(**how)  # type: ignore[arg-type]
    assert ada.count() == 1


def test_a_turn_credits_a_memory_once(ada: ScopedMemories, store: Store, where: Where) -> None:
    (memory,) = ada.add([new("hello")])
    ada.record_uses([(memory.id, 0.2), (memory.id, 0.6)], turn="t1")
    assert (ada.get(memory.id).uses, ada.get(memory.id).attention) == (1, pytest.approx(0.6))
    ada.record_uses([(memory.id, 0.9)], turn="t1")  # after it was written
    with Store.open(where, embedder=EMBEDDER) as other:  # and in another process
        other.scope(ADA).record_uses([(memory.id, 0.9)], turn="t1")
    assert ada.get(memory.id).uses == 1
    ada.record_uses([(memory.id, 0.4)], turn="t2")
    used = ada.get(memory.id)
    assert (used.uses, used.attention, used.frequency) == (2, pytest.approx(1.0), pytest.approx(3.0, abs=1e-3))
    assert used.last_used is not None
    assert store.verify().ok


def test_uses_are_buffered_and_written_with_the_next_write_at_close_or_in_time(
    where: Where, monkeypatch: pytest.MonkeyPatch
) -> None:
    def written() -> int:
        with Store.open(where) as other:
            return other.scope(ADA).stats().uses

    with Store.open(where, embedder=EMBEDDER) as store:
        handle = store.scope(ADA)
        (memory,) = handle.add([new("hello")])
        handle.record_uses([(memory.id, 0.5)], turn="t1")
        handle.search("hello")
        assert written() == 0
        handle.add([new("the next write")])
        assert written() == 1
        handle.record_uses([(memory.id, 0.5)], turn="t2")
        monkeypatch.setattr(usage, "FLUSH_AFTER", -1.0)
        handle.record_uses([], turn="t3")
        assert written() == 2
        monkeypatch.undo()
        handle.record_uses([(memory.id, 0.5), ("unknown", 0.5)], turn="t4")
    assert written() == 3


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan"), "much", None, True])
def test_bad_shares_are_refused(ada: ScopedMemories, share: object) -> None:
    (memory,) = ada.add([new("hello")])
    with pytest.raises(InvalidInput, match="attention share"):
        ada.record_uses([(memory.id, share)], turn="t")  # type: ignore[list-item]
    assert ada.get(memory.id).uses == 0
