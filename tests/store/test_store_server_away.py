"""A PostgreSQL server that goes away and comes back, and workers that are killed: what was acknowledged is there."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable

import pytest
import servers
import sqlalchemy as sa
from servers import kill_connections
from store_world import ADA, EMBEDDER, attach, embed, finish, new, python
from stream_world import extend, open_stream, record, stored

from agentmem.errors import StoreBusy, StoreUnavailable, StreamChanged
from agentmem.records import Scope
from agentmem.store import ScopedMemories, Store
from agentmem.store.places import find_place
from agentmem.store.retry import Disconnected, RolledBack, retried

pytestmark = pytest.mark.postgresql


def test_a_database_that_goes_away_and_comes_back_is_not_noticed(ada: ScopedMemories, store: Store) -> None:
    (memory,) = ada.add([new("hello")])
    kill_connections()
    assert ada.get(memory.id) == memory
    times: list[int] = []

    class Cut:
        patience = 10.0

        @retried
        def read(self) -> int:
            with store.database.read() as connection:
                place = find_place(connection, ADA)
                if not times:
                    kill_connections()
                times.append(1)
                assert place is not None
                return connection.scalar(sa.text("SELECT count(*) FROM memory")) or 0

        @retried
        def write(self) -> None:
            with store.write() as connection:
                find_place(connection, ADA)
                times.append(1)
                if len(times) < 4:
                    kill_connections()
                connection.execute(sa.text("UPDATE memory SET pinned = true"))

    assert Cut().read() == 1
    assert len(times) == 2
    Cut().write()
    assert len(times) == 4
    assert ada.get(memory.id).pinned
    assert store.verify().ok


def pin_and_lose_the_connection(store: Store) -> None:
    with store.write() as connection:
        find_place(connection, ADA)
        connection.execute(sa.text("UPDATE memory SET pinned = true"))
        kill_connections()


def test_a_commit_whose_outcome_nobody_knows_is_said_so_and_not_repeated(ada: ScopedMemories, store: Store) -> None:
    (memory,) = ada.add([new("hello")])
    with pytest.raises(StoreUnavailable, match="whether it was stored is unknown") as caught:
        pin_and_lose_the_connection(store)
    assert not isinstance(caught.value, Disconnected)
    assert ada.get(memory.id).text == "hello"


@pytest.mark.parametrize(("lost", "final"), [(RolledBack, StoreBusy), (Disconnected, StoreUnavailable)])
def test_patience_ends_with_a_clear_error(lost: type[Exception], final: type[Exception]) -> None:
    class Never:
        patience = 0.05
        times = 0

        @retried
        def go(self, numbers: object) -> None:
            self.times += 1
            assert list(numbers) == [1, 2]  # type: ignore[call-overload]  # read anew each time
            raise lost("no luck")

    never = Never()
    with pytest.raises(final, match=r"no luck .tried for 0.05 s") as caught:
        never.go(iter([1, 2]))
    assert never.times > 1
    assert type(caught.value) is final


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT], ids=["restart", "crash"])
def test_a_server_that_is_started_again_loses_nothing_acknowledged(
    how: signal.Signals, ada: ScopedMemories, store: Store
) -> None:
    acknowledged: list[str] = []
    unknown: list[str] = []
    failures: list[Exception] = []
    stop = threading.Event()

    def talk() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            try:
                (memory,) = ada.add([new(f"said {number}", id=str(number))])
                attach(ada, memory, f"KV of {number}".encode() * 100)
                ada.search(f"said {number}", embed(f"said {number}"))
            except StoreUnavailable as error:
                if "is unknown" not in str(error):
                    failures.append(error)
                unknown.append(str(number))
            except Exception as error:  # noqa: BLE001  # of a thread: shown below
                failures.append(error)
            else:
                acknowledged.append(str(number))

    thread = threading.Thread(target=talk)
    thread.start()
    try:
        wait_for(lambda: len(acknowledged) >= 3 or failures)
        with servers.server_away(how):
            time.sleep(0.2)
            enough = len(acknowledged) + 3
        wait_for(lambda: len(acknowledged) >= enough or failures)
    finally:
        stop.set()
        thread.join(60)
    assert failures == []
    there = {memory.id: memory for memory in ada.list(limit=10_000)}
    assert set(acknowledged) <= set(there) <= set(acknowledged) | set(unknown)
    assert all(there[id].kv_bytes for id in acknowledged)
    assert store.verify().ok


def test_a_server_that_stays_away_is_said_so_and_nothing_is_half_done(where: str) -> None:
    with Store.open(where, embedder=EMBEDDER, lock_timeout=0.3) as store:
        ada = store.scope(ADA)
        (memory,) = ada.add([new("hello")])
        ada.record_uses([(memory.id, 0.5)], turn="t")
        with servers.server_away(signal.SIGINT):
            for call in (lambda: ada.add([new("lost")]), ada.list, lambda: ada.delete(memory.id), store.verify):
                with pytest.raises(StoreUnavailable, match=r"connection to .* was lost .*nothing was changed"):
                    call()
        assert [one.text for one in ada.list()] == ["hello"]
        assert ada.get(memory.id).uses == 1  # buffered meanwhile
        assert store.verify().ok


WORKER = """
import sys
from store_world import EMBEDDER, attach, new
from agentmem.records import Scope
from agentmem.store import Store

with Store.open(sys.argv[1], embedder=EMBEDDER) as store:
    for number in range(int(sys.argv[3])):
        handle = store.scope(Scope(user=f"user{number % 2}"))
        (memory,) = handle.add([new(f"{sys.argv[2]} {number}", session="s")])
        attach(handle, memory, sys.argv[2].encode() * 1000)
        print(memory.id, memory.text, flush=True)
"""


def test_a_worker_killed_in_mid_turn_loses_nothing_that_was_acknowledged(store: Store, where: str) -> None:
    doomed = python(WORKER, where, "doomed", 1_000_000)
    steady = python(WORKER, where, "steady", 12)
    acknowledged = []
    assert doomed.stdout is not None
    for line in doomed.stdout:
        acknowledged.append(line.split(" ", 1))
        if len(acknowledged) == 6:
            doomed.send_signal(signal.SIGKILL)
    doomed.wait()
    doomed.stdout.close()
    assert doomed.stderr is not None
    doomed.stderr.close()
    acknowledged += [line.split(" ", 1) for line in finish(steady).splitlines()]
    assert len(acknowledged) >= 18
    there = {m.id: m.text for user in ("user0", "user1") for m in store.scope(Scope(user=user)).list(limit=10_000)}
    for id_, text in acknowledged:
        assert there[id_] == text.strip()
    assert len(there) <= len(acknowledged) + 1  # one may have been stored and not yet said so
    assert store.verify().ok


def test_a_stream_goes_on_when_its_connections_are_lost(ada: ScopedMemories, store: Store) -> None:
    stream = stored(ada)
    extend(stream, 2, "more")
    kill_connections()  # the one that holds the writer's lock too
    assert stream.read(1) == record(1, "s")
    stream.commit(b"kept", 1, {})
    kill_connections()
    with open_stream(ada) as again:
        assert [again.read(n) for n in (0, 4)] == [record(0, "s"), record(4, "more")]
        assert again.tail() == b"kept"
    assert store.verify().ok


def test_of_two_writers_that_both_lost_the_lock_one_commits(ada: ScopedMemories) -> None:
    stored(ada).close()
    first, second = open_stream(ada), open_stream(ada)
    extend(first, 2, "first")
    with pytest.raises(StoreBusy, match="written by another process"):
        extend(second, 1, "second")
    kill_connections()
    extend(second, 1, "second")
    second.commit(b"second", 1, {})
    with pytest.raises(StreamChanged, match="nothing was written"):
        first.commit(b"first", 1, {})
    again = open_stream(ada)
    assert (again.n_records, again.tail()) == (4, b"second")
    assert again.read(3) == record(3, "second")


def test_a_server_that_stays_away_ends_a_stream_with_a_clear_error(where: str) -> None:
    with Store.open(where, embedder=EMBEDDER, lock_timeout=0.3) as store:
        ada = store.scope(ADA)
        stored(ada).close()
        stream = open_stream(ada)
        with servers.server_away(signal.SIGINT):
            for call in (lambda: stream.read(1), stream.tail, stream.is_current, lambda: extend(stream, 1)):
                with pytest.raises(StoreUnavailable, match=r"connection to .* was lost"):
                    call()
        assert stream.read(1) == record(1, "s")
        extend(stream, 1)
        stream.commit(b"back", 1, {})
        assert store.verify().ok
