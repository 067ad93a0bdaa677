"""A session's stream: what is committed comes back byte for byte, what cannot be trusted is dropped, never used."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from store_world import ADA, BOB, EMBEDDER, Where, new
from stream_world import INDEX, RECORD, entry, extend, kept_bytes, open_stream, record, stored

from agentmem.errors import Closed, InvalidInput, StreamChanged
from agentmem.records import Scope
from agentmem.store import ScopedMemories, Store
from agentmem.store.schema import KVTrash
from agentmem.store.stream_files import PIECE


def test_a_stream_that_was_never_written_is_new_and_empty(ada: ScopedMemories) -> None:
    for _ in range(2):
        stream = open_stream(ada)
        assert (stream.n_records, stream.n_tokens, stream.meta, stream.why_empty) == (0, 0, {}, None)
        assert stream.tail() is None
        assert stream.index() == b""
        assert stream.is_current()


def test_a_stream_comes_back_as_it_was_committed(where: Where) -> None:
    with Store.open(where, embedder=EMBEDDER) as store:
        stream = open_stream(store.scope(ADA))
        extend(stream, 2)
        assert stream.read(1) == record(1)  # before the commit
        stream.commit(b"first", 300, {"turns": {"a": 0}})
        extend(stream, 3)
        stream.commit(b"second" * 100_000, 700, {"turns": {"a": 0, "b": 300}})
        assert stream.tail() == b"second" * 100_000
    with Store.open(where, embedder=EMBEDDER) as store:
        stream = open_stream(store.scope(ADA))
        assert stream.why_empty is None
        assert (stream.session, stream.n_records, stream.n_tokens) == ("s", 5, 700)
        assert stream.meta == {"turns": {"a": 0, "b": 300}}
        assert stream.tail() == b"second" * 100_000
        assert [stream.read(number) for number in range(5)] == [record(number) for number in range(5)]
        assert stream.index() == b"".join(entry(number) for number in range(5))
        assert kept_bytes(store) == 5 * (RECORD + INDEX + 3 * 4) + 600_000  # the first tail is gone
        assert store.verify().ok


STEPS = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from(["commit", "rollback", "reopen", "close"])), min_size=1, max_size=6
)


def test_what_was_committed_is_what_is_read(ada: ScopedMemories) -> None:
    names = itertools.count()

    @settings(max_examples=40)
    @given(
        size=st.sampled_from([1, 31, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE]),
        index=st.integers(0, 70),
        steps=STEPS,
        data=st.data(),
    )
    def check(size: int, index: int, steps: list[tuple[int, str]], data: st.DataObject) -> None:
        session, sizes = f"session {next(names)}", {"record_bytes": size, "index_bytes": index}
        stream = open_stream(ada, session, **sizes)
        committed: list[int] = []  # the salt of each record
        for salt, (count, then) in enumerate(steps):
            extend(stream, count, salt)
            salts = committed + [salt] * count
            if then == "commit":
                stream.commit(b"tail %d" % salt, salt, {"salt": salt})
                committed = salts
            elif then == "rollback":
                stream.rollback()
            elif then == "close":
                stream.close()
            stream = open_stream(ada, session, **sizes) if then in ("reopen", "close") else stream
            assert stream.n_records == len(committed)
            assert stream.index() == b"".join(entry(n, salt, index) for n, salt in enumerate(committed))
            for number, its in enumerate(committed):
                offset = data.draw(st.integers(0, size))
                length = data.draw(st.integers(0, size - offset))
                assert stream.read(number, offset, length) == record(number, its, size)[offset : offset + length]
            assert stream.tail() == (b"tail %d" % stream.meta["salt"] if stream.meta else None)

    check()


def test_reads_hand_out_buffers_of_their_own(ada: ScopedMemories) -> None:
    stream = stored(ada)
    first = stream.read(0)
    first[:] = bytes(len(first))
    assert stream.read(0) == record(0, "s")


def test_streams_of_sessions_users_and_agents_are_apart(store: Store) -> None:
    handles = [store.scope(scope) for scope in (ADA, BOB, Scope(user="ada", agent="x"))]
    for number, handle in enumerate(handles):
        for session in ("s", "other"):
            with open_stream(handle, session) as stream:
                assert stream.n_records == 0
                extend(stream, 1 + number, f"{number} {session}")
                stream.commit(b"tail", 1, {})
    for number, handle in enumerate(handles):
        for session in ("s", "other"):
            stream = open_stream(handle, session)
            assert [stream.read(n) for n in range(stream.n_records)] == [
                record(n, f"{number} {session}") for n in range(1 + number)
            ]


def test_a_handle_narrowed_to_a_session_has_no_other_stream(store: Store) -> None:
    monday = store.scope(Scope(user="ada", session="monday"))
    stored(monday, "monday")
    for call in (lambda: open_stream(monday, "tuesday"), lambda: monday.drop_stream("tuesday")):
        with pytest.raises(InvalidInput, match="narrowed to session 'monday'"):
            call()
    assert open_stream(store.scope(ADA), "monday").n_records == 3


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"fingerprint": "model-b"}, "another model or recipe"),
        ({"record_bytes": RECORD + 1}, "its records are of"),
        ({"index_bytes": INDEX - 1}, "its records are of"),
    ],
)
def test_a_stream_of_another_kind_is_dropped(store: Store, ada: ScopedMemories, other, why: str) -> None:
    old = stored(ada)
    stream = open_stream(ada, **other)
    assert stream.n_records == 0
    assert stream.why_empty is not None
    assert why in stream.why_empty
    assert kept_bytes(store) == 0
    assert not old.is_current()
    extend(stream, 1)
    stream.commit(b"", 1, {})
    assert open_stream(ada, **other).read(0) == record(0, size=stream.record_bytes)


def test_a_dropped_stream_is_gone(store: Store, ada: ScopedMemories) -> None:
    stream, other = stored(ada), stored(ada, "t")
    stream.drop()
    with pytest.raises(Closed):
        stream.read(0)
    assert ada.drop_stream("t")
    assert not ada.drop_stream("t")
    assert not ada.drop_stream("never")
    assert not other.is_current()
    assert kept_bytes(store) == 0
    assert store.verify().problems == ()
    with store.database.read() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(KVTrash)) == 0
    assert open_stream(ada).why_empty is None


def test_a_failed_commit_can_be_tried_again(store: Store, ada: ScopedMemories, monkeypatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    stream = stored(ada)
    extend(stream, 1, "more")
    with monkeypatch.context() as patch:
        patch.setattr("agentmem.store.tidying.enforce", interrupt)
        with pytest.raises(KeyboardInterrupt):
            stream.commit(b"lost", 1, {})
    assert stream.tail() == b"tail" * 1000
    assert kept_bytes(store) == (3 if store.files is None else 4) * (RECORD + INDEX + 3 * 4) + 4000  # one tail
    stream.commit(b"kept", 2, {})
    again = open_stream(ada)
    assert (again.tail(), again.n_tokens, again.read(3)) == (b"kept", 2, record(3, "more"))


@pytest.mark.sqlite  # what is synced here are files
def test_everything_is_synced_before_the_row_commits(store: Store, ada: ScopedMemories, monkeypatch) -> None:
    stream = stored(ada)
    done: list[tuple[str, int]] = []
    fsync, pwrite, write = os.fsync, os.pwrite, os.write

    def noting(what: str, call):
        def noted(handle: int, *arguments: object) -> object:
            done.append((what, os.fstat(handle).st_ino))
            return call(handle, *arguments)

        return noted

    monkeypatch.setattr(os, "fsync", noting("sync", fsync))
    monkeypatch.setattr(os, "pwrite", noting("write", pwrite))
    monkeypatch.setattr(os, "write", noting("write", write))
    extend(stream, 2)
    with monkeypatch.context() as patch:
        patch.setattr("agentmem.store.tidying.enforce", lambda *_, **__: done.append(("row", 0)))
        stream.commit(b"tail", 1, {})
    rows = done.index(("row", 0))
    written = {inode for what, inode in done[:rows] if what == "write"}
    assert len(written) == 3
    for inode in written:
        last = max(at for at, step in enumerate(done) if step == ("write", inode))
        assert ("sync", inode) in done[last:rows]
    folder = os.stat(store.files.root / f"streams/{stream._key}").st_ino  # type: ignore[union-attr]
    assert ("sync", folder) in done[:rows]


def test_a_closed_stream_and_a_closed_store_say_so(where: Where) -> None:
    store = Store.open(where, embedder=EMBEDDER)
    stream, other = stored(store.scope(ADA)), stored(store.scope(ADA), "t")
    stream.close()
    stream.close()
    store.close()
    for one in (stream, other):
        for call in (
            lambda one=one: one.read(0),
            lambda one=one: one.index(),
            lambda one=one: one.tail(),
            lambda one=one: one.append(record(0), entry(0)),
            lambda one=one: one.commit(b"", 0, {}),
            lambda one=one: one.rollback(),
            lambda one=one: one.is_current(),
        ):
            with pytest.raises(Closed, match="open it again"):
                call()


def test_a_stream_of_a_store_in_memory_lasts_while_it_is_open(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Store.open(":memory:", embedder=EMBEDDER) as store:
        ada = store.scope(ADA)
        stream = stored(ada)
        extend(stream, 1, "more")
        stream.commit(b"newer", 4, {"a": 1})
        assert stream.read(0) == record(0, "s")
        assert stream.read(3) == record(3, "more")
        assert (stream.tail(), stream.meta) == (b"newer", {"a": 1})
        assert len(stream.index()) == 4 * INDEX
        assert store.verify().ok
        assert ada.stats().stream_bytes > 4 * RECORD
        ada.delete(ada.add([new("hello", session="s")])[0].id)
        assert not stream.is_current()
        with pytest.raises(StreamChanged):
            stream.commit(b"", 0, {})
        stored(ada)
        again = open_stream(ada)
        assert again.n_records == 0
        assert again.why_empty is not None
    assert list(tmp_path.iterdir()) == []


def test_nobody_else_can_read_a_stream(ada: ScopedMemories, path: Path) -> None:
    stored(ada)
    root = Path(f"{path}.kv")
    assert {file.stat().st_mode & 0o077 for file in (root, *root.rglob("*"))} == {0}


def test_bad_arguments_are_refused_and_change_nothing(store: Store, ada: ScopedMemories) -> None:
    stream = stored(ada)
    for call, message in (
        (lambda: stream.append(record(0)[:-1], entry(0)), f"record must be of {RECORD} bytes"),
        (lambda: stream.append(record(0), entry(0) + b"x"), f"index must be of {INDEX} bytes"),
        (lambda: stream.append("text", entry(0)), "record must be bytes"),
        (lambda: stream.commit("tail", 1, {}), "tail must be bytes"),
        (lambda: stream.commit(b"tail", -1, {}), "n_tokens"),
        (lambda: stream.commit(b"tail", 1, {"a": float("nan")}), "plain JSON"),
        (lambda: stream.commit(b"tail", 1, [1]), "mapping"),
        (lambda: stream.read(3), "number"),
        (lambda: stream.read(-1), "number"),
        (lambda: stream.read(0, RECORD, 1), "length"),
        (lambda: stream.read(0, -1), "offset"),
        (lambda: open_stream(ada, None), "name one"),
        (lambda: open_stream(ada, " s"), "white space"),
        (lambda: open_stream(ada, fingerprint=""), "fingerprint"),
        (lambda: open_stream(ada, record_bytes=0), "record_bytes"),
        (lambda: open_stream(ada, index_bytes=-1), "index_bytes"),
    ):
        with pytest.raises(InvalidInput, match=message):
            call()
    with pytest.raises(InvalidInput, match="there is no record 0"):
        open_stream(ada, "new").read(0)
    assert open_stream(ada).tail() == b"tail" * 1000
    assert ada.stats().streams == 2
