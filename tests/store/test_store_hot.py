"""The hot tier holds nothing of what is gone: at once where it was deleted, before the next recall elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from store_world import ADA, BOB, EMBEDDER, Where, attach, finish, new, python

from agentmem.records import Scope
from agentmem.store import EvictionPolicy, HotTier, ScopedMemories, Store
from agentmem.store.places import see_all


@dataclass
class Block:
    data: bytes

    @property
    def nbytes(self) -> int:
        return len(self.data)


Hot = HotTier[Block]


def warm(store: Store, scope: Scope, *ids: str, **more: object) -> ScopedMemories:
    handle = store.scope(scope)
    for memory in handle.add([new(f"memory {id}", id=id, **more) for id in ids]):
        attach(handle, memory, b"kv of " + memory.id.encode())
    return handle


def recall(handle: ScopedMemories, hot: Hot, *ids: str) -> list[str]:
    """What a recall does: tend, then take from RAM what is there, and load the rest. Returns what was loaded."""
    handle.tend(hot, fingerprint="model-a")
    loaded = handle.load_kv(
        ids, fingerprint="model-a", held=lambda id, sha256: hot.get(handle.space, id, sha256) is not None
    )
    for id, payload in loaded.payloads.items():
        hot.put(handle.space, id, payload.sha256, Block(bytes(payload.data)))
    return sorted(loaded.payloads)


@pytest.fixture
def hot() -> Hot:
    return HotTier(2**20)


def test_what_is_held_is_not_loaded_again(store: Store, hot: Hot) -> None:
    ada = warm(store, ADA, "a", "b")
    assert recall(ada, hot, "a") == ["a"]
    assert recall(ada, hot, "a", "b") == ["b"]
    assert recall(ada, hot, "a", "b") == []
    loaded = ada.load_kv(["a", "b"], fingerprint="model-a", held=lambda id, sha256: id == "a")
    assert (sorted(loaded.payloads), loaded.missing, loaded.foreign) == (["b"], (), ())


def test_equal_ids_of_two_spaces_are_two_entries(store: Store, hot: Hot) -> None:
    ada, bob = warm(store, ADA, "same"), warm(store, BOB, "same")
    assert recall(ada, hot, "same") == recall(bob, hot, "same") == ["same"]
    assert recall(ada, hot, "same") == recall(bob, hot, "same") == []
    ada.delete("same")
    assert (hot.ids(ada.space), hot.ids(bob.space)) == ([], ["same"])


ERASED: dict[str, Callable[[ScopedMemories], object]] = {
    "delete": lambda handle: handle.delete("a"),
    "forget_scope": lambda handle: handle.forget_scope(),
    "update": lambda handle: handle.update("a", text="another", n_tokens=1),
}


@pytest.mark.parametrize("erased", ERASED)
def test_bytes_are_freed_at_once_in_the_process_that_erases(store: Store, hot: Hot, erased: str) -> None:
    ada, bob = warm(store, ADA, "a"), warm(store, BOB, "b")
    recall(ada, hot, "a")
    recall(bob, hot, "b")
    ERASED[erased](ada)
    assert hot.ids(ada.space) == []
    assert hot.nbytes == len(b"kv of b")


ELSEWHERE = """
import sys
from agentmem.records import Scope
from agentmem.store import Store
with Store.open(sys.argv[1]) as store:
    handle = store.scope(Scope(user="ada"))
    {"delete": lambda: handle.delete("a"), "forget_scope": lambda: handle.forget_scope(),
     "update": lambda: handle.update("a", text="another", n_tokens=1),
     "prune": lambda: handle.prune(max_bytes=0)}[sys.argv[2]]()
"""


@pytest.mark.parametrize("erased", [*ERASED, "prune"])
def test_what_another_process_erases_is_freed_by_the_next_recall_of_anyone(
    store: Store, where: Where, hot: Hot, erased: str
) -> None:
    ada, bob = warm(store, ADA, "a"), warm(store, BOB, "b")
    recall(ada, hot, "a")
    recall(bob, hot, "b")
    finish(python(ELSEWHERE, where, erased))
    assert recall(bob, hot, "b") == [], "nothing of Bob was erased"
    assert hot.ids(ada.space) == []
    assert hot.nbytes == len(b"kv of b")


def test_what_expires_is_not_served_and_is_freed_with_the_next_write(store: Store, hot: Hot) -> None:
    ada = warm(store, ADA, "a")
    recall(ada, hot, "a")
    ada.expire("a", datetime.now(UTC) + timedelta(seconds=0.4))
    time.sleep(0.41)
    asked: list[str] = []
    ada.load_kv(["a"], fingerprint="model-a", held=lambda id, sha256: bool(asked.append(id)))
    assert asked == []
    store.scope(BOB).add([new("unrelated")])
    recall(store.scope(BOB), hot)
    assert hot.nbytes == 0


def test_what_is_evicted_is_freed(where: Where, hot: Hot) -> None:
    with Store.open(where, embedder=EMBEDDER, eviction=EvictionPolicy(space_kv_bytes=12, grace=timedelta(0))) as store:
        ada = warm(store, ADA, "a")
        recall(ada, hot, "a")
        warm(store, ADA, "b")
        recall(ada, hot, "b")
        assert hot.ids(ada.space) == ["b"]


def test_verify_that_counts_again_keeps_the_count_of_erasures_growing(store: Store, where: Where, hot: Hot) -> None:
    ada = warm(store, ADA, "a")
    recall(ada, hot, "a")
    with store.write() as connection:
        see_all(connection)
        connection.exec_driver_sql("UPDATE tally SET memories = 77")
    assert not store.verify(repair=False).ok
    assert store.verify(repair=True).ok
    assert recall(ada, hot, "a") == []
    finish(python(ELSEWHERE, where, "delete"))
    recall(ada, hot)
    assert hot.nbytes == 0
