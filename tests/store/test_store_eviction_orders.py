"""MemLong's counter-based update, least recently used, and first in first out, as orders of eviction."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from store_world import ADA, EMBEDDER, Where, attach, embed, new

from agentmem.errors import InvalidInput
from agentmem.store import EvictionPolicy, ScopedMemories, Store
from agentmem.store.eviction import Candidate, counter_update, in_order, over_count_memlong

MEMLONG = EvictionPolicy(order="memlong")
COUNTS = st.lists(st.integers(0, 6), min_size=0, max_size=120)


def candidates(uses: list[int], pinned: frozenset[int] = frozenset()) -> list[Candidate]:
    return [
        Candidate(
            key=at,
            id=str(at),
            frequency=0.0,
            created_us=at,
            last_us=None,
            kv_bytes=0,
            pinned=at in pinned,
            uses=count,
        )
        for at, count in enumerate(uses)
    ]


def test_the_papers_example_in_full() -> None:
    # oldest tenth: 0, 1; newest tenth: 18, 19; of the middle: counts 0 (4 of them), then 1 (4): ten of twenty are gone
    uses = [9, 9, 0, 2, 1, 0, 3, 1, 2, 0, 5, 1, 2, 0, 1, 7, 2, 4, 0, 0]
    assert counter_update(uses) == [0, 1, 2, 4, 5, 7, 9, 11, 13, 14]


def test_a_class_of_counts_goes_as_a_whole_even_past_the_half() -> None:
    assert counter_update([0] * 10) == list(range(9)), "the newest tenth stays"
    assert counter_update([1, *[0] * 4, *[1] * 4, 0]) == [0, 1, 2, 3, 4]
    assert counter_update([1, *[0] * 3, *[1] * 5, 0]) == [0, 1, 2, 3, 4, 5, 6, 7, 8]


@given(COUNTS)
def test_the_update_is_the_papers_for_any_counts(uses: list[int]) -> None:
    n, tenth = len(uses), len(uses) // 10
    gone = counter_update(uses)
    assert gone == sorted(set(gone))
    assert set(range(tenth)) <= set(gone), "the oldest tenth goes"
    stays = max(tenth, 1) if n > 1 else 0
    assert not set(range(n - stays, n)) & set(gone), "the newest tenth stays, at least one"
    assert 2 * len(gone) >= n, "at least half is gone"
    middle = range(tenth, n - stays)
    left = {uses[at] for at in middle if at not in gone}
    taken = {uses[at] for at in middle if at in gone}
    assert not left & taken, "a count goes as a whole"
    assert not left or not taken or max(taken) < min(left), "lower counts first"
    if taken:
        without_last = [at for at in gone if at < tenth or uses[at] != max(taken)]
        assert 2 * len(without_last) < n, "and no count more than needed"


@given(COUNTS, st.integers(0, 130), st.sets(st.integers(0, 119)))
def test_the_budget_holds_pinned_ones_stay_and_nothing_goes_needlessly(
    uses: list[int], budget: int, pinned: set[int]
) -> None:
    everything = candidates(uses, frozenset(pinned))
    gone = [c for c, _ in over_count_memlong(everything, budget, MEMLONG, 0, "budget")]
    assert len({c.key for c in gone}) == len(gone)
    assert not any(c.pinned for c in gone)
    left = len(everything) - len(gone)
    assert left <= budget or all(c.pinned for c in everything if c not in gone)
    if len(everything) <= budget:
        assert gone == []


@given(st.lists(st.tuples(st.integers(0, 50), st.none() | st.integers(0, 99), st.booleans()), max_size=30))
def test_lru_and_fifo(rows: list[tuple[int, int | None, bool]]) -> None:
    everything = [
        Candidate(key=n, id=str(n), frequency=0.0, created_us=made, last_us=used, kv_bytes=1, pinned=pinned)
        for n, (made, used, pinned) in enumerate(rows)
    ]
    unpinned = {c.key for c in everything if not c.pinned}
    for order, when in (("fifo", lambda c: c.created_us), ("lru", lambda c: max(c.created_us, c.last_us or 0))):
        ordered = in_order(everything, EvictionPolicy(order=order), 1000)
        assert {c.key for c in ordered} == unpinned
        assert [when(c) for c in ordered] == sorted(when(c) for c in ordered)


def test_an_unknown_order_is_refused() -> None:
    with pytest.raises(InvalidInput, match="lfu, memlong, lru, fifo"):
        EvictionPolicy(order="random")  # type: ignore[arg-type]


def grown(store: Store, n: int) -> ScopedMemories:
    """n memories of different lengths, each younger than the one before, with KV."""
    handle = store.scope(ADA)
    for at in range(n):
        (memory,) = handle.add([new(text(at))])
        attach(handle, memory, b"k" * (10 + at))
    return handle


def text(at: int) -> str:
    return f"memory number{at} " + "word " * (at % 7)


def test_text_vectors_and_kv_stay_together_under_the_counter_update(where: Where) -> None:
    """The published code drops tokens by half of the capacity and chunks by half of their number: they part."""
    with Store.open(where, embedder=EMBEDDER) as store:
        handle = grown(store, 20)
        ids = {memory.text: memory.id for memory in handle.list(limit=100)}
        for at in (2, 5, 8, 11, 14):
            for turn in range(at):
                handle.record_uses([(ids[text(at)], 0.5)], turn=f"{turn}")
    policy = EvictionPolicy(order="memlong", space_memories=19, grace=timedelta(0))
    with Store.open(where, embedder=EMBEDDER, eviction=policy) as store:
        handle = store.scope(ADA)
        plan = store.evict(dry_run=True)
        assert store.evict().pruned == plan.pruned
        assert len(plan.pruned) >= 10
        left = handle.list(limit=100)
        assert {m.uses for m in left} >= {5, 8, 11, 14}
        assert all("counter-based update of 20" in pruned.reason for pruned in plan.pruned)
        loaded = handle.load_kv([m.id for m in left], fingerprint="model-a")
        for memory in left:
            at = int(memory.text.split()[1].removeprefix("number"))
            assert loaded.payloads[memory.id].data == b"k" * (10 + at), "its own KV"
            (hit, *_) = handle.search(memory.text, embed(memory.text), top_k=1)
            assert hit.memory.id == memory.id, "its own vector and words"
        for gone in plan.pruned:
            assert handle.history(gone.id)[-1].action == "evicted"
        assert store.verify().ok


def test_fifo_and_lru_in_a_store(where: Where) -> None:
    with Store.open(where, embedder=EMBEDDER) as store:
        handle = grown(store, 4)
        oldest = handle.list(sort="created_at")[0]
        handle.record_uses([(oldest.id, 0.5)], turn="t")
    for order, stays in (("lru", True), ("fifo", False)):
        policy = EvictionPolicy(order=order, space_memories=3)  # type: ignore[arg-type]
        with Store.open(where, embedder=EMBEDDER, eviction=policy) as store:
            gone = {pruned.id for pruned in store.evict(dry_run=True).pruned}
            assert len(gone) == 1
            assert (oldest.id not in gone) == stays
