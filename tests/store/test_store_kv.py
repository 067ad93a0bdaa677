"""KV payloads: attached whole or not at all, loaded only when they match."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa
from store_world import ADA, BOB, EMBEDDER, attach, embed, new

from agentmem.errors import InvalidInput, StoreError
from agentmem.records import Memory, Scope, Tier
from agentmem.store import HotTier, NewKV, ScopedMemories, Store, text_digest
from agentmem.store.objects import PayloadObjects
from agentmem.store.payloads import INLINE_MAX, PayloadFiles
from agentmem.store.places import see_all
from agentmem.store.schema import KVPayload

pytestmark = pytest.mark.payloads

SMALL, LARGE = b"s" * INLINE_MAX, b"L" * (INLINE_MAX + 1)


@pytest.fixture
def memory(ada: ScopedMemories) -> Memory:
    return ada.add([new("hello")])[0]


def files(store: Store) -> list[str]:
    assert store.payloads is not None
    return list(store.payloads.walk())


@pytest.mark.parametrize("payload", [SMALL, LARGE], ids=["inline", "file"])
def test_kv_comes_back_whole(ada: ScopedMemories, store: Store, memory: Memory, payload: bytes) -> None:
    assert attach(ada, memory, payload)
    loaded = ada.load_kv([memory.id], fingerprint="model-a")
    assert loaded.payloads[memory.id].data == payload
    assert loaded.payloads[memory.id].codec == "int8"
    assert loaded.payloads[memory.id].sha256 == hashlib.sha256(payload).digest()
    assert ada.kv_digests([memory.id], fingerprint="model-a") == {memory.id: hashlib.sha256(payload).digest()}
    assert (loaded.missing, loaded.damaged, loaded.foreign) == ((), (), ())
    assert (ada.get(memory.id).tier, ada.get(memory.id).kv_bytes) == (Tier.WARM, len(payload))
    assert len(files(store)) == (payload is LARGE)
    assert store.verify().ok


def test_file_payloads_are_handed_out_as_buffers_of_the_caller(ada: ScopedMemories, memory: Memory) -> None:
    attach(ada, memory, LARGE)
    first = ada.load_kv([memory.id], fingerprint="model-a").payloads[memory.id].data
    assert isinstance(first, bytearray)
    first[:] = bytes(len(first))
    assert ada.load_kv([memory.id], fingerprint="model-a").payloads[memory.id].data == LARGE


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_payloads_may_be_any_bytes(ada: ScopedMemories, memory: Memory, kind) -> None:
    assert attach(ada, memory, kind(LARGE))
    assert ada.load_kv([memory.id], fingerprint="model-a").payloads[memory.id].data == LARGE


def test_kv_of_another_fingerprint_is_foreign_and_never_handed_out(ada: ScopedMemories, memory: Memory) -> None:
    attach(ada, memory, b"of a", "model-a")
    loaded = ada.load_kv([memory.id, "unknown"], fingerprint="model-b")
    assert (loaded.payloads, loaded.foreign, loaded.missing) == ({}, (memory.id,), ("unknown",))
    attach(ada, memory, b"of b", "model-b")
    assert ada.load_kv([memory.id], fingerprint="model-a").payloads[memory.id].data == b"of a"
    assert ada.load_kv([memory.id], fingerprint="model-b").payloads[memory.id].data == b"of b"
    assert ada.get(memory.id).kv_bytes == 8


def test_a_second_attach_replaces_the_first_and_its_file(ada: ScopedMemories, store: Store, memory: Memory) -> None:
    attach(ada, memory, LARGE)
    attach(ada, memory, LARGE + b"!")
    assert len(files(store)) == 1
    assert ada.load_kv([memory.id], fingerprint="model-a").payloads[memory.id].data == LARGE + b"!"


def test_kv_of_a_memory_that_went_is_dropped_without_a_trace(ada: ScopedMemories, store: Store, memory: Memory) -> None:
    ada.delete(memory.id)
    assert not attach(ada, memory, LARGE)
    assert files(store) == []
    assert not attach(store.scope(BOB), memory, LARGE)


def test_kv_of_a_memory_that_goes_during_the_write_is_dropped(
    ada: ScopedMemories, store: Store, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = type(store.payloads)
    assert home in (PayloadFiles, PayloadObjects)
    original = home.write  # type: ignore[union-attr]

    def write_then_lose(self: object, payloads: object) -> None:
        original(self, payloads)
        ada.delete(memory.id)

    monkeypatch.setattr(home, "write", write_then_lose)
    assert not attach(ada, memory, LARGE)
    assert files(store) == []
    assert store.stats().kv_bytes == 0


def test_attach_many_keeps_what_still_fits(ada: ScopedMemories) -> None:
    one, two, three = ada.add([new("one"), new("two"), new("three")])
    ada.update(two.id, text="changed", n_tokens=1)
    ada.delete(three.id)
    payloads = [NewKV(m.id, b"kv", "fp16", text_digest(m.text)) for m in (one, two, three)]
    assert ada.attach_kv_many(payloads, fingerprint="f") == [one.id]
    assert ada.attach_kv_many([], fingerprint="f") == []


@pytest.mark.parametrize(
    "bad",
    [
        NewKV("x", b"", "int8", bytes(32)),
        NewKV("x", "text", "int8", bytes(32)),  # type: ignore[arg-type]
        NewKV("x", b"kv", "", bytes(32)),
        NewKV("x", b"kv", "c" * 40, bytes(32)),
        NewKV("x", b"kv", "int8", b"short"),
        NewKV("", b"kv", "int8", bytes(32)),
        "x",
    ],
)
def test_bad_payloads_are_refused(ada: ScopedMemories, bad: NewKV) -> None:
    with pytest.raises(InvalidInput):
        ada.attach_kv_many([bad], fingerprint="f")
    with pytest.raises(InvalidInput):
        ada.attach_kv_many([NewKV("x", b"kv", "int8", bytes(32))], fingerprint=" ")


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


@pytest.mark.sqlite  # files, spoilt by hand
@pytest.mark.parametrize("spoil", [_flip, _cut, Path.unlink])
def test_a_damaged_file_is_reported_never_used_and_replaced(
    ada: ScopedMemories, store: Store, memory: Memory, spoil
) -> None:
    attach(ada, memory, LARGE)
    assert store.files is not None
    spoil(store.files.root / files(store)[0])
    loaded = ada.load_kv([memory.id], fingerprint="model-a")
    assert (loaded.payloads, loaded.damaged, loaded.missing) == ({}, (memory.id,), ())
    assert not store.verify().ok
    assert attach(ada, memory, LARGE)
    assert ada.load_kv([memory.id], fingerprint="model-a").payloads[memory.id].data == LARGE
    assert store.verify().ok


def test_a_damaged_row_is_reported_and_never_used(ada: ScopedMemories, store: Store, memory: Memory) -> None:
    attach(ada, memory, SMALL)
    with store.database.write() as connection:
        see_all(connection)
        connection.execute(sa.update(KVPayload).values(data=bytes(len(SMALL))))
    assert ada.load_kv([memory.id], fingerprint="model-a").damaged == (memory.id,)


@pytest.mark.sqlite  # a folder
def test_a_folder_that_cannot_be_written_is_an_error_not_a_loss(
    ada: ScopedMemories, store: Store, memory: Memory
) -> None:
    assert store.files is not None
    store.files.root.write_text("a file where the folder should be")
    with pytest.raises(StoreError, match="cannot write KV below"):
        attach(ada, memory, LARGE)
    assert ada.get(memory.id).tier is Tier.COLD
    assert attach(ada, memory, SMALL)


def test_threads_share_a_store(store: Store) -> None:
    done: list[int] = []

    def work(user: int) -> None:
        handle = store.scope(Scope(user=f"user{user}"))
        for number in range(8):
            (memory,) = handle.add([new(f"number {number}")])
            attach(handle, memory, LARGE if number % 2 else SMALL)
            handle.record_uses([(memory.id, 0.5)], turn=str(number))
            assert len(handle.load_kv([memory.id], fingerprint="model-a").payloads) == 1
            assert handle.search("number", embed("number"), threshold=None)
            if number % 3 == 0:
                handle.delete(memory.id)
        done.append(user)

    threads = [threading.Thread(target=work, args=(user,)) for user in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == [0, 1, 2, 3]
    assert store.stats().memories == 4 * 5
    assert store.verify().ok


def test_a_store_in_memory_keeps_kv_inline() -> None:
    with Store.open(":memory:", embedder=EMBEDDER) as store:
        handle = store.scope(ADA)
        (memory,) = handle.add([new("hello")])
        assert attach(handle, memory, LARGE)
        assert handle.load_kv([memory.id], fingerprint="model-a").payloads[memory.id].data == LARGE
        assert handle.delete(memory.id).complete
        assert handle.load_kv([memory.id], fingerprint="model-a").missing == (memory.id,)


class Block:
    def __init__(self, nbytes: int):
        self.nbytes = nbytes


def test_the_hot_tier_keeps_what_is_read_most() -> None:
    hot: HotTier[Block] = HotTier(100)
    often, seldom, fresh = Block(40), Block(40), Block(40)
    assert hot.put(ADA, "often", b"1", often)
    assert hot.put(ADA, "seldom", b"1", seldom)
    assert hot.get(ADA, "often", b"1") is often
    assert hot.put(ADA, "fresh", b"1", fresh)
    assert hot.get(ADA, "seldom", b"1") is None
    assert hot.get(ADA, "often", b"1") is often
    assert hot.get(ADA, "fresh", b"1") is fresh
    assert (hot.nbytes, len(hot)) == (80, 2)


def test_the_hot_tier_serves_only_the_payload_asked_for() -> None:
    hot: HotTier[Block] = HotTier(100)
    old, changed = Block(10), Block(20)
    hot.put(ADA, "m", b"old", old)
    assert hot.get(ADA, "m", b"new") is None
    hot.put(ADA, "m", b"new", changed)
    assert hot.get(ADA, "m", b"old") is None
    assert hot.get(ADA, "m", b"new") is changed
    assert hot.nbytes == 20
    hot.discard(ADA, ["m"])
    assert (hot.get(ADA, "m", b"new"), hot.nbytes) == (None, 0)


def test_the_hot_tier_never_exceeds_its_budget() -> None:
    hot: HotTier[Block] = HotTier(100)
    assert not hot.put(ADA, "big", b"", Block(101))
    for number in range(50):
        assert hot.put(ADA, str(number), b"", Block(30 + number % 7))
        assert hot.nbytes <= 100
    hot.clear()
    assert (hot.nbytes, len(hot)) == (0, 0)
    nothing: HotTier[Block] = HotTier(0)
    assert not nothing.put(ADA, "m", b"", Block(1))
    for bad in (-1, True, 1.5):
        with pytest.raises(InvalidInput, match="max_bytes"):
            HotTier(bad)  # type: ignore[arg-type]


def test_old_fame_fades_in_the_hot_tier() -> None:
    hot: HotTier[Block] = HotTier(2)
    hot.put(ADA, "famous", b"", Block(1))
    for _ in range(1000):
        hot.get(ADA, "famous", b"")
    hot.put(ADA, "new", b"", Block(1))
    for _ in range(12_000):
        hot.get(ADA, "new", b"")
    hot.put(ADA, "newest", b"", Block(1))
    assert hot.get(ADA, "famous", b"") is None
    assert hot.get(ADA, "new", b"") is not None
