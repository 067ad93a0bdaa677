"""What ends or disturbs a stream: forgetting, budgets, other processes, kills, a full disk, an older store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from servers import found_in
from store_world import ADA, BOB, EMBEDDER, Where, attach, embed, finish, new, python
from stream_world import INDEX, RECORD, entry, extend, kept_bytes, open_stream, record, stored

from agentmem.errors import InvalidInput, StoreBusy, StoreFull, StreamChanged
from agentmem.records import Scope
from agentmem.store import EvictionPolicy, ScopedMemories, Store

KILLS = int(os.environ.get("AGENTMEM_TEST_KILLS", "21"))

NEEDLES = [record(0, "s")[:64], record(2, "s")[-64:], entry(1, "s"), b"vqxtail" * 3, b"vqxmeta"]


def with_needles(handle: ScopedMemories, session: str = "s") -> None:
    """A stream whose every part can be looked for."""
    with open_stream(handle, session) as stream:
        extend(stream, 3, "s")
        stream.commit(b"vqxtail" * 1000, 384, {"vqxmeta": 1})


FORGETTING: dict[str, Callable[[Store, ScopedMemories], object]] = {
    "delete": lambda store, ada: ada.delete("a"),
    "delete in the session": lambda store, ada: store.scope(Scope(user="ada", session="s")).delete(["b", "a"]),
    "update": lambda store, ada: ada.update("b", text="something else", n_tokens=2, embedding=embed("else")),
    "prune by number": lambda store, ada: ada.prune(max_memories=1),
    "prune by age": lambda store, ada: ada.prune(unused_for=timedelta(0)),
    "prune by bytes": lambda store, ada: ada.prune(max_bytes=0),
    "forget the session": lambda store, ada: store.scope(Scope(user="ada", session="s")).forget_scope(),
    "forget the user": lambda store, ada: ada.forget_scope(),
    "drop": lambda store, ada: ada.drop_stream("s"),
}


@pytest.mark.parametrize("how", FORGETTING)
def test_forgetting_leaves_no_byte_of_the_stream(store: Store, ada: ScopedMemories, where: Where, how: str) -> None:
    ada.add([new("first", id="a", session="s"), new("second", id="b", session="s")])
    with_needles(ada)
    if isinstance(where, Path):
        stray = next(Path(f"{where}.kv").glob("streams/*")) / "77.tail.tmp"
        stray.write_bytes(b"vqxtail" * 10)  # of a commit that was killed
    opened = open_stream(ada)
    extend(opened, 1, "uncommitted")
    store.database.checkpoint()
    assert {needle for _, needle in found_in(where, *NEEDLES)} == set(NEEDLES)
    FORGETTING[how](store, ada)
    if how.startswith(("prune", "drop")):
        store.finish_erasure(wait=1.0, due=True)
    assert found_in(where, *NEEDLES) == []
    assert not opened.is_current()
    with pytest.raises(StreamChanged, match="open it again"):
        opened.commit(b"vqxtail" * 10, 512, {"vqxmeta": 2})
    store.database.checkpoint()
    assert found_in(where, *NEEDLES) == []
    assert store.verify().problems == ()
    assert kept_bytes(store) == 0
    again = open_stream(ada)
    assert (again.n_records, again.why_empty) == (0, None)


@pytest.mark.parametrize("session", ["s", None])
def test_a_session_that_is_nothing_but_a_stream_is_forgotten(store: Store, where: Where, session: str | None) -> None:
    with_needles(store.scope(ADA))
    handle = store.scope(Scope(user="ada", session=session))
    assert handle.forget_scope().complete == isinstance(where, Path)
    assert found_in(where, *NEEDLES) == []
    assert store.verify().problems == ()
    assert len(store.spaces()) == (0 if session is None else 1)


def test_what_forgets_nothing_of_a_session_keeps_its_stream(store: Store, ada: ScopedMemories, tmp_path: Path) -> None:
    ada.add([new("first", id="a", session="s"), new("elsewhere", id="x", session="t"), new("nowhere", id="n")])
    store.scope(BOB).add([new("of bob", id="a", session="s")])
    stream = stored(ada)
    ada.update("a", tags=("t",), meta={"k": 1})
    ada.update("a", text="first", n_tokens=1)  # the same text
    ada.pin("a")
    ada.record_uses([("a", 0.5)], turn="q")
    ada.add([new("later", session="s")])
    ada.delete(["x", "n"])
    store.scope(BOB).delete("a")
    ada.export(tmp_path / "ada.jsonl")
    store.scope(BOB).load(tmp_path / "ada.jsonl")
    ada.prune(max_memories=10, max_bytes=10**9, unused_for="1d")
    ada.prune(max_bytes=0, max_memories=0, unused_for=timedelta(0), dry_run=True)
    store.evict()
    assert store.verify(repair=True).problems == ()
    assert stream.is_current()
    assert open_stream(ada).read(2) == record(2, "s")
    assert open_stream(store.scope(BOB)).n_records == 0  # an export carries no stream


def test_a_memory_that_is_evicted_takes_the_stream_along(where: Where) -> None:
    policy = EvictionPolicy(space_memories=2, grace=timedelta(0))
    with Store.open(where, embedder=EMBEDDER, eviction=policy) as store:
        ada = store.scope(ADA)
        ada.add([new("oldest", session="s")])
        ada.add([new("newer", session="t")])
        first, second = stored(ada, "s"), stored(ada, "t")
        ada.add([new("newest", session="t")])
        assert ada.count(session="s") == 0
        assert not first.is_current()
        assert second.is_current()


EACH = 3 * (RECORD + INDEX + 4 * 3) + 4000
"""Bytes of a stream that ``stored`` made."""


def test_streams_are_counted(store: Store, ada: ScopedMemories) -> None:
    (memory,) = ada.add([new("hello", session="s")])
    attach(ada, memory, b"k" * 500)
    stored(ada, "s")
    stored(ada, "t")
    stored(store.scope(BOB), "s")
    for handle, count in ((ada, 2), (store.scope(Scope(user="ada", session="s")), 1)):
        numbers = handle.stats()
        assert (numbers.streams, numbers.stream_bytes) == (count, count * EACH)
        assert numbers.kv_bytes == count * EACH + 500
        assert (numbers.warm, numbers.cold) == (1, 0)
    assert (store.stats().streams, store.stats().stream_bytes) == (3, 3 * EACH)
    assert store.stats().file_bytes > 3 * EACH
    assert store.scope(Scope(user="nobody")).stats().streams == 0


@pytest.mark.parametrize("budget", ["space_kv_bytes", "total_kv_bytes"])
def test_over_the_budget_the_stream_rested_longest_goes_first(where: Where, budget: str) -> None:
    policy = EvictionPolicy(**{budget: 3 * EACH}, grace=timedelta(0))  # type: ignore[arg-type]
    with Store.open(where, embedder=EMBEDDER, eviction=policy) as store:
        ada = store.scope(ADA)
        streams = [stored(ada, session) for session in ("a", "b", "c")]
        assert all(stream.is_current() for stream in streams)
        streams[0].commit(b"", 1, {})
        memory = ada.add([new("hello", session="d")])[0]
        attach(ada, memory, b"k" * 5000)
        assert [stream.is_current() for stream in streams] == [True, False, True]
        assert ada.get(memory.id).kv_bytes == 5000
        last = stored(ada, "d", count=4)
        assert [stream.is_current() for stream in streams] == [True, False, False]
        assert last.is_current()
        assert ada.stats().kv_bytes <= 3 * EACH
        assert store.verify().ok


def test_a_stream_in_use_goes_after_the_kv_of_memories(where: Where) -> None:
    policy = EvictionPolicy(space_kv_bytes=3 * EACH)  # and an hour of grace
    with Store.open(where, embedder=EMBEDDER, eviction=policy) as store:
        ada = store.scope(ADA)
        memory = ada.add([new("hello", session="s")])[0]
        attach(ada, memory, b"k" * 2 * EACH)
        first = stored(ada, "a")
        assert ada.get(memory.id).kv_bytes == 2 * EACH
        second = stored(ada, "b")
        assert ada.get(memory.id).kv_bytes == 0
        assert first.is_current()
        report = ada.prune(max_bytes=EACH, dry_run=True)
        assert [(p.id, p.action, p.kv_bytes) for p in report.pruned] == [("a", "drop_stream", EACH)]
        assert first.is_current()
        assert ada.prune(max_bytes=EACH).freed_kv_bytes == EACH
        assert not first.is_current()
        assert second.is_current()
        assert ada.count() == 1


def test_a_commit_never_drops_its_own_stream(where: Where) -> None:
    with Store.open(where, embedder=EMBEDDER, eviction=EvictionPolicy(space_kv_bytes=EACH)) as store:
        ada = store.scope(ADA)
        memory = ada.add([new("hello", session="t", pinned=True)])[0]
        attach(ada, memory, b"k" * 5000)
        stream = stored(ada)  # with the pinned KV over the budget
        assert stream.is_current()
        assert ada.get(memory.id).kv_bytes == 5000


def test_a_stream_that_is_over_the_budget_alone_is_refused(where: Where) -> None:
    policy = EvictionPolicy(space_kv_bytes=EACH)
    with Store.open(where, embedder=EMBEDDER, eviction=policy) as store:
        ada = store.scope(ADA)
        stream = stored(ada)
        with pytest.raises(StoreFull, match="raise space_kv_bytes"):
            extend(stream, 1)
        with pytest.raises(StoreFull, match="raise space_kv_bytes"):
            stream.commit(bytes(EACH), 512, {})
        stream.rollback()
        assert stream.tail() == b"tail" * 1000
        stream.commit(b"less", 384, {})
        assert open_stream(ada).read(2) == record(2, "s")


OTHER = """
import sys
from store_world import *
from stream_world import *
from agentmem.errors import StoreError
from agentmem.store import Store
with Store.open(sys.argv[1], embedder=EMBEDDER) as store:
    stream = open_stream(store.scope(ADA))
    print(stream.n_records, stream.read(0) == record(0, "s"), flush=True)
    for line in sys.stdin:
        try:
            if line == "append\\n":
                extend(stream, 2, "other")
            elif line == "commit\\n":
                stream.commit(b"other", 1, {})
            elif line == "open\\n":
                stream = open_stream(store.scope(ADA))
            print("done", flush=True)
        except StoreError as error:
            print(type(error).__name__, flush=True)
"""


class Other:
    """Another process with the same stream open."""

    def __init__(self, where: Where):
        self.process = python(OTHER, where, stdin=subprocess.PIPE)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "3 True\n"

    def __call__(self, word: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def end(self) -> None:
        finish(self.process)


def test_two_processes_take_turns_and_do_not_mix(store: Store, ada: ScopedMemories, where: Where) -> None:
    stream = stored(ada)
    other = Other(where)
    assert other("append") == "done"
    with pytest.raises(StoreBusy, match="written by another process"):
        extend(stream, 1, "mine")
    assert stream.read(2) == record(2, "s")  # reading goes on
    reopened = open_stream(ada)  # what is not committed is not there
    assert (reopened.n_records, reopened.tail()) == (3, b"tail" * 1000)
    assert stream.is_current()
    assert other("commit") == "done"
    assert not stream.is_current()
    with pytest.raises(StreamChanged, match="open it again"):
        extend(stream, 1, "mine")
    with pytest.raises(StreamChanged):
        reopened.commit(b"mine", 1, {})
    stream = open_stream(ada)
    extend(stream, 1, "mine")
    assert other("append") == "StoreBusy"
    stream.commit(b"mine", 2, {})
    assert other("append") == "StreamChanged"
    assert other("open") == "done"
    assert other("append") == "done"
    other.end()  # without a commit
    stream = open_stream(ada)
    salts = ["s", "s", "s", "other", "other", "mine"]
    assert [stream.read(number) for number in range(6)] == [record(n, salt) for n, salt in enumerate(salts)]
    assert (stream.n_records, stream.tail()) == (6, b"mine")
    assert store.verify().problems == ()


def test_an_old_tail_is_not_mistaken_for_damage(ada: ScopedMemories, where: Where) -> None:
    stream = stored(ada)
    other = Other(where)
    assert other("commit") == "done"
    other.end()
    with pytest.raises(StreamChanged):
        stream.tail()
    assert open_stream(ada).tail() == b"other"


def test_a_killed_writer_lets_others_write(ada: ScopedMemories, where: Where) -> None:
    stream = stored(ada)
    other = Other(where)
    assert other("append") == "done"
    other.process.kill()
    other.process.communicate()
    extend(stream, 1, "mine")
    stream.commit(b"mine", 1, {})
    assert open_stream(ada).read(3) == record(3, "mine")


def test_a_forked_child_does_not_write_its_parents_stream(ada: ScopedMemories) -> None:
    stream = stored(ada)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            stream.read(0)
            extend(stream, 1, "child")
        except StreamChanged:
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    extend(stream, 1, "parent")
    stream.commit(b"", 1, {})
    assert open_stream(ada).read(3) == record(3, "parent")


def test_killed_writers_leave_the_last_commit(where: Where, tmp_path: Path) -> None:
    script = [sys.executable, Path(__file__).parent / "stream_crash.py", where, tmp_path, KILLS // 2, 1]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = list(map(str, script))
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60 + 10 * KILLS)
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert counts["kills"] == KILLS // 2 * 2
    assert counts["commits"] >= KILLS // 2
    assert counts["longest"] > 0


NO_ROOM = """
import resource, sys
from store_world import *
from stream_world import *
from agentmem.errors import StoreFull
from agentmem.store import Store
store = Store.open(sys.argv[1], embedder=EMBEDDER)
stream = stored(store.scope(ADA))
resource.setrlimit(resource.RLIMIT_FSIZE, (4 * RECORD + 5000, 4 * RECORD + 5000))
for act in (lambda: extend(stream, 9, "more"), lambda: stream.commit(bytes(5 * RECORD), 1, {})):
    try:
        act()
    except StoreFull as error:
        print(error)
print(stream.n_records)
stream.commit(b"less", 512, {})
"""


@pytest.mark.sqlite  # a limit on the size of its files
def test_no_room_is_reported_and_leaves_the_stream_usable(where: Where) -> None:
    lines = finish(python(NO_ROOM, where)).splitlines()
    assert lines[0].startswith("no room to write the stream of session 's'; free some space")
    assert lines[1].startswith("no room to write KV below")
    assert lines[2] == "4"
    with Store.open(where, embedder=EMBEDDER) as store:
        stream = open_stream(store.scope(ADA))
        assert [stream.read(n) for n in range(4)] == [record(n, "s" if n < 3 else "more") for n in range(4)]
        assert stream.tail() == b"less"
        assert store.verify().problems == ()


def test_a_stream_is_dropped_by_name(where: Where) -> None:
    with pytest.raises(InvalidInput, match="name one"), Store.open(where) as store:
        store.scope(ADA).drop_stream(None)  # type: ignore[arg-type]
