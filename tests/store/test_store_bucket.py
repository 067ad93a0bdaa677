"""KV of a PostgreSQL store in a bucket, on a real S3 server."""

from __future__ import annotations

import pytest
import servers
from store_world import ADA, EMBEDDER, attach, new

from agentmem.errors import InvalidInput, StoreOpenError, StoreUnavailable
from agentmem.store import Store


@pytest.fixture
def address() -> str:
    return servers.empty_database()


def test_kv_in_a_bucket_is_remembered_swept_and_erased(address: str) -> None:
    bucket = servers.empty_bucket()
    large = b"L" * 300_000
    with Store.open(address, embedder=EMBEDDER, kv_store=bucket) as store:
        handle = store.scope(ADA)
        (memory,) = handle.add([new("hello")])
        assert attach(handle, memory, large)
        assert store.payloads is not None
        (uri,) = store.payloads.walk()
        assert store.payloads.size() == len(large)
        stray = uri.replace(".kv", "stray.kv")
        store.payloads.write([(stray, b"left by a crash")])
        assert store.verify().ok  # it may be a write in progress
    with Store.open(address, embedder=EMBEDDER) as store:  # knows its bucket
        handle = store.scope(ADA)
        assert handle.load_kv([memory.id], fingerprint="model-a").payloads[memory.id].data == large
        assert not handle.delete(memory.id).complete  # what the server keeps of dead rows is not ours to promise
        assert store.payloads is not None
        assert list(store.payloads.walk()) == []
    with pytest.raises(StoreOpenError, match="leave kv_store out"):
        Store.open(address, kv_store="s3://another/place")


def test_while_the_bucket_is_away_kv_is_cold_and_all_else_works(address: str) -> None:
    large = b"L" * 300_000
    with Store.open(address, embedder=EMBEDDER, kv_store=servers.empty_bucket()) as store:
        handle = store.scope(ADA)
        memory, doomed, small = handle.add([new("hello"), new("goodbye"), new("small")])
        for one, payload in ((memory, large), (doomed, large), (small, b"small")):
            assert attach(handle, one, payload)
        with servers.bucket_away():
            loaded = handle.load_kv([memory.id, doomed.id, small.id], fingerprint="model-a")
            assert loaded.missing == (memory.id, doomed.id)  # to be encoded from the text
            assert loaded.payloads.keys() == {small.id}
            with pytest.raises(StoreUnavailable, match="cannot write KV to s3://"):
                attach(handle, memory, large)
            assert handle.get(memory.id).kv_bytes == len(large)
            assert handle.delete(doomed.id).ids == (doomed.id,)
        assert handle.load_kv([memory.id], fingerprint="model-a").damaged == (memory.id,)  # the new bucket is empty
        assert {problem.kind for problem in store.verify(repair=True).problems} == {"payload_file"}
        assert attach(handle, memory, large)
        assert store.verify().ok


def test_a_bucket_that_is_not_there_or_not_a_bucket(address: str) -> None:
    servers.empty_bucket()
    with pytest.raises(StoreOpenError, match="cannot use s3://nowhere"):
        Store.open(address, kv_store="s3://nowhere/x")
    for wrong in ("file:///tmp/x", "s3://"):
        with pytest.raises(InvalidInput, match="must look like s3://"):
            Store.open(address, kv_store=wrong)
    with pytest.raises(InvalidInput, match="goes with a PostgreSQL store"):
        Store.open(":memory:", kv_store="s3://memories/x")
