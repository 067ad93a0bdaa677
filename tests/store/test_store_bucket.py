"""KV of a PostgreSQL store in a bucket, on a real S3 server."""

from __future__ import annotations

import pytest
import servers
from store_world import ADA, EMBEDDER, attach, new
from stream_world import INDEX, extend, kept_bytes, open_stream, record, stored

from agentmem.errors import InvalidInput, StoreOpenError, StoreUnavailable
from agentmem.records import Scope
from agentmem.store import ScopedMemories, Store, StoredStream
from agentmem.store.verify import orphans

pytestmark = pytest.mark.postgresql


def test_kv_in_a_bucket_is_remembered_swept_and_erased(where: str) -> None:
    bucket = servers.empty_bucket()
    large = b"L" * 300_000
    with Store.open(where, embedder=EMBEDDER, kv_store=bucket) as store:
        handle = store.scope(ADA)
        (memory,) = handle.add([new("hello")])
        assert attach(handle, memory, large)
        assert store.payloads is not None
        (uri,) = store.payloads.walk()
        assert store.payloads.size() == len(large)
        stray = uri.replace(".kv", "stray.kv")
        store.payloads.write([(stray, b"left by a crash")])
        assert store.verify().ok  # it may be a write in progress
    with Store.open(where, embedder=EMBEDDER) as store:  # knows its bucket
        handle = store.scope(ADA)
        assert handle.load_kv([memory.id], fingerprint="model-a").payloads[memory.id].data == large
        assert not handle.delete(memory.id).complete  # what the server keeps of dead rows is not ours to promise
        assert store.payloads is not None
        assert list(store.payloads.walk()) == []
    with pytest.raises(StoreOpenError, match="leave kv_store out"):
        Store.open(where, kv_store="s3://another/place")


def test_while_the_bucket_is_away_kv_is_cold_and_all_else_works(where: str) -> None:
    large = b"L" * 300_000
    with Store.open(where, embedder=EMBEDDER, kv_store=servers.empty_bucket()) as store:
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


def test_a_bucket_that_is_not_there_or_not_a_bucket(where: str) -> None:
    servers.empty_bucket()
    with pytest.raises(StoreOpenError, match="cannot use s3://nowhere"):
        Store.open(where, kv_store="s3://nowhere/x")
    for wrong in ("file:///tmp/x", "s3://"):
        with pytest.raises(InvalidInput, match="must look like s3://"):
            Store.open(where, kv_store=wrong)
    with pytest.raises(InvalidInput, match="goes with a PostgreSQL store"):
        Store.open(":memory:", kv_store="s3://memories/x")


LARGE = 300_000


def large_stream(handle: ScopedMemories, count: int = 10) -> StoredStream:
    """A stream that goes on by so many records, each an object, with a tail that is one too."""
    stream = open_stream(handle, record_bytes=LARGE)
    extend(stream, count, "s")
    stream.commit(b"t" * LARGE, 128 * stream.n_records, {})
    return stream


def objects(store: Store) -> int:
    """How many there are, of streams and all else."""
    assert store.payloads is not None
    return len(list(store.payloads.walk()))


def test_a_stream_lies_in_the_bucket_and_another_worker_goes_on(where: str) -> None:
    bucket = servers.empty_bucket()
    with Store.open(where, kv_store=bucket) as one, Store.open(where) as other:
        first = large_stream(one.scope(ADA))
        assert objects(one) == 11
        second = large_stream(other.scope(ADA), 2)
        assert not first.is_current()
        assert objects(one) == 13  # the first tail is gone
        assert [second.read(n, 5, 20) for n in (0, 9, 11)] == [record(n, "s", LARGE)[5:25] for n in (0, 9, 11)]
        assert one.verify().problems == ()
        assert kept_bytes(one) == 12 * (LARGE + INDEX + 4 * 10) + LARGE
        small = stored(one.scope(ADA), "small")  # too small to be objects
        assert objects(one) == 13
        assert one.scope(Scope(user="ada", session="s")).forget_scope().ids == ()
        assert objects(one) == 0
        assert small.is_current()
        assert not second.is_current()


def test_objects_of_a_commit_that_never_was_are_swept(where: str) -> None:
    with Store.open(where, kv_store=servers.empty_bucket()) as store:
        ada = store.scope(ADA)
        stream = large_stream(ada)
        extend(stream, 1, "more")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("agentmem.store.tidying.enforce", interrupt)
            with pytest.raises(KeyboardInterrupt):
                stream.commit(b"t" * LARGE, 1, {})
        assert objects(store) == 11
        with pytest.MonkeyPatch.context() as patch:  # dies in between
            patch.setattr("agentmem.store.tidying.enforce", interrupt)
            patch.setattr(store, "discard", lambda uris: True)
            with pytest.raises(KeyboardInterrupt):
                stream.commit(b"t" * LARGE, 1, {})
        assert objects(store) == 13
        assert store.verify().problems == ()  # it may be a commit under way
        assert len(orphans(store, 0.0)) == 2
        stream.commit(b"t", 1, {})
        assert open_stream(ada, record_bytes=LARGE).read(10) == record(10, "more", LARGE)
        ada.drop_stream("s")
        assert {problem.kind for problem in store.verify(repair=True).problems} == {"orphan_file"}
        assert objects(store) == 0


def test_objects_that_rows_may_name_stay_when_nobody_knows_the_outcome(where: str) -> None:
    with Store.open(where, embedder=EMBEDDER, kv_store=servers.empty_bucket(), lock_timeout=60) as store:
        ada = store.scope(ADA)
        (memory,) = ada.add([new("hello")])
        stream = open_stream(ada, record_bytes=LARGE)
        extend(stream, 1)
        for objects_then, call in (
            (1, lambda: attach(ada, memory, b"k" * LARGE)),
            (3, lambda: stream.commit(b"t" * LARGE, 1, {})),
        ):
            with pytest.MonkeyPatch.context() as patch:  # the last step before the commit
                patch.setattr("agentmem.store.tidying.enforce", lambda *_, **__: servers.kill_connections())
                with pytest.raises(StoreUnavailable, match="is unknown"):
                    call()
            assert objects(store) == objects_then
        assert len(orphans(store, 0.0)) == 3
        stream.commit(b"t", 1, {})
        assert store.verify().ok


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_a_bucket_that_is_away_is_said_so_and_one_that_was_emptied_costs_the_stream(where: str) -> None:
    with Store.open(where, kv_store=servers.empty_bucket()) as store:
        ada = store.scope(ADA)
        large_stream(ada).close()
        stream = open_stream(ada, record_bytes=LARGE)
        with servers.bucket_away():
            for call in (lambda: stream.read(1), stream.tail, lambda: open_stream(ada, record_bytes=LARGE)):
                with pytest.raises(StoreUnavailable, match="cannot read KV from s3://"):
                    call()
            extend(stream, 1)
            with pytest.raises(StoreUnavailable, match="cannot write KV to s3://"):
                stream.commit(b"t" * LARGE, 1, {})
            stream.close()
            assert ada.stats().streams == 1  # for all that was away
        again = open_stream(ada, record_bytes=LARGE)
        assert (again.n_records, again.why_empty) == (0, "its tail is missing")
        assert store.verify().ok
