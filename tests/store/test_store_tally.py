"""Running totals, and an eviction that reads only what goes: the same answers as counting and sorting everything."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from store_world import ADA, BOB, EMBEDDER, attach, new

from agentmem.store import EvictionPolicy, ScopedMemories, Store, opening, tally
from agentmem.store.eviction import OrderName, in_order
from agentmem.store.inputs import now_us
from agentmem.store.places import see_all
from agentmem.store.schema import MemoryRow, MemoryUsage
from agentmem.store.tidying import candidates, in_turn

STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["add", "attach", "attach again", "delete", "evict", "prune", "forget", "stream", "drop stream"]
        ),
        st.integers(0, 5),
        st.booleans(),
    ),
    max_size=14,
)


def totals_are_right(store: Store) -> None:
    with store.database.read() as connection:
        see_all(connection)
        assert tally.wrong(connection) == {}


def step(store: Store, what: str, number: int, ada: bool) -> None:
    handle = store.scope(ADA if ada else BOB)
    memories = handle.list(sort="created_at")
    memory = memories[number % len(memories)] if memories else None
    if what == "add":
        handle.add([new(f"memory {number}.{n}", turn=f"t{number}", chunk_no=n, session="s") for n in range(1 + number)])
    elif what.startswith("attach") and memory:
        attach(handle, memory, b"k" * (100 + 10 * number), "model-b" if what.endswith("again") else "model-a")
    elif what == "delete" and memory:
        handle.delete(memory.id)
    elif what == "evict":
        store.evict()
    elif what == "prune":
        handle.prune(max_bytes=100 * number, max_memories=2 * number)
    elif what == "forget":
        handle.forget_scope()
    elif what == "stream":
        with handle.open_stream("s", fingerprint="f", record_bytes=8, index_bytes=4) as stream:
            stream.append(b"r" * 8, b"i" * 4)
            stream.commit(b"tail" * number or b"t", 10, {})
    elif what == "drop stream":
        handle.drop_stream("s")


@settings(max_examples=25)
@given(steps=STEPS)
def test_the_totals_are_those_of_counting_after_whatever_happened(steps: list[tuple[str, int, bool]]) -> None:
    policy = EvictionPolicy(space_memories=8, space_kv_bytes=500, total_kv_bytes=700, grace=timedelta(0))
    with TemporaryDirectory() as folder, Store.open(Path(folder) / "m.db", embedder=EMBEDDER, eviction=policy) as store:
        for what, number, ada in steps:
            step(store, what, number, ada)
            totals_are_right(store)
        assert store.verify().ok


def test_verify_finds_wrong_totals_and_repairs_them(ada: ScopedMemories, store: Store) -> None:
    (memory,) = ada.add([new("one")])
    attach(ada, memory, b"k" * 100)
    with store.write() as connection:
        see_all(connection)
        connection.execute(sa.text("UPDATE tally SET memories = 7, kv_bytes = 0"))
    (problem,) = store.verify().problems
    assert problem.kind == "totals"
    assert problem.detail == "a space has 1 memories and 100 bytes of KV, but its totals say 7 and 0"
    (problem,) = store.verify(repair=True).problems
    assert problem.repaired
    assert store.verify().ok
    totals_are_right(store)


def test_a_store_without_totals_gets_them_when_it_is_opened(path: Path) -> None:
    with Store.open(path, embedder=EMBEDDER) as store:
        for scope, n in ((ADA, 3), (BOB, 1)):
            for memory in store.scope(scope).add([new(f"memory {at}") for at in range(n)]):
                attach(store.scope(scope), memory, b"k" * 100)
        with store.scope(ADA).open_stream("s", fingerprint="f", record_bytes=8, index_bytes=4) as stream:
            stream.append(b"r" * 8, b"i" * 4)
            stream.commit(b"tail", 10, {})
        with store.write() as connection:  # as the revision before left it
            for name in ("ix_memory_expires", "ix_memory_space_expires", "ix_event_time"):
                connection.execute(sa.text(f"DROP INDEX {name}"))
            for table, column in (("memory", "expires_us"), ("memory_usage", "recent_reads")):
                connection.execute(sa.text(f"ALTER TABLE {table} DROP COLUMN {column}"))
            for table in ("tally", "stream_record", "stream_tail", "log_entry"):
                connection.execute(sa.text(f"DROP TABLE {table}"))
            connection.execute(sa.text("UPDATE alembic_version SET version_num = '0003'"))
    assert opening.preflight(path) == "0003"
    with Store.open(path, embedder=EMBEDDER) as store:
        totals_are_right(store)
        with store.database.read() as connection:
            assert tally.totals(connection, None).memories == 4
            assert tally.totals(connection, None).kv_bytes > 400
        assert store.verify().ok


ROWS = st.lists(
    st.tuples(
        st.integers(-9, 9),  # written; before 0: dated by a clock that was ahead
        st.none() | st.integers(0, 9),  # last read
        st.integers(0, 3),  # uses
        st.sampled_from([0.0, 0.5, 0.5, 3.0]),  # score
        st.booleans(),  # pinned
        st.booleans(),  # warm
    ),
    max_size=12,
)


@settings(max_examples=40)
@given(rows=ROWS, by=st.sampled_from(["lfu", "memlong", "lru", "fifo"]), warm=st.booleans())
def test_the_database_sorts_as_the_policy_does(
    rows: list[tuple[int, int | None, int, float, bool, bool]], by: OrderName, warm: bool
) -> None:
    hour, now = 3_600_000_000, now_us()
    policy = EvictionPolicy(order=by, grace=timedelta(hours=5), half_life=timedelta(days=2))
    with Store.open(":memory:", embedder=EMBEDDER) as store:
        handle = store.scope(ADA)
        memories = handle.add([new(f"memory {n}") for n in range(len(rows))])
        for memory, row in zip(memories, rows, strict=True):
            if row[5]:
                attach(handle, memory, b"k" * 10)
        with store.write() as connection:
            for memory, (written, read, uses, score, pinned, _) in zip(memories, rows, strict=True):
                key = connection.scalar(sa.select(MemoryRow.id).where(MemoryRow.uid == memory.id))
                of = {"created_us": now - written * hour, "pinned": pinned}
                connection.execute(sa.update(MemoryRow).where(MemoryRow.id == key).values(of))
                last = None if read is None else now - read * hour
                usage = {"uses": uses, "score": score, "score_us": last or 0, "last_us": last}
                connection.execute(sa.update(MemoryUsage).where(MemoryUsage.memory_id == key).values(usage))
        with store.database.read() as connection:
            every = [c for c in candidates(connection, [], policy, now) if c.kv_bytes or not warm]
            n, turn = in_turn(connection, [], policy, now, warm=warm)
            expected = [c.key for c in in_order(every, policy, now)]
            assert n == len(expected)
            assert [c.key for c in turn] == expected


def test_a_write_within_the_budgets_reads_no_other_memory(
    ada: ScopedMemories, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada.add([new(f"memory {n}") for n in range(20)])
    said: list[str] = []
    sa.event.listen(store.database._engine, "before_cursor_execute", lambda *args: said.append(args[2]))
    (memory,) = ada.add([new("one more")])
    attach(ada, memory, b"k" * 100)
    assert any("tally" in statement for statement in said)
    assert not [statement for statement in said if "count(" in statement.lower() and "memory" in statement.lower()]
    assert not [
        statement
        for statement in said
        if "sum(kv_payload.nbytes)" in statement
        and "GROUP BY" not in statement
        and "memory_id = memory.id" not in statement
    ]
