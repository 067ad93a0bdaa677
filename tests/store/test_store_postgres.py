"""What is PostgreSQL's own: isolation by the database, plans, lost connections, writers at once, what is refused."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psycopg
import pytest
import servers
import sqlalchemy as sa
from store_world import ADA, BOB, EMBEDDER, attach, embed, new
from stream_world import stored

from agentmem.errors import SchemaTooNew, StoreError, StoreOpenError
from agentmem.records import Scope
from agentmem.store import ScopedMemories, Store
from agentmem.store.places import find_place, see_all
from agentmem.store.postgres import isolation
from agentmem.store.schema import Base

pytestmark = pytest.mark.postgresql


def fill(store: Store) -> None:
    for scope in (ADA, BOB):
        handle = store.scope(scope)
        (memory,) = handle.add([new(f"a secret of {scope.user}", session="s", tags=("private",), id="one")])
        attach(handle, memory, b"k" * 1000)
        stored(handle, count=1)
        store.log(scope).put("title", f"a note of {scope.user}")


def content() -> list[str]:
    """Every table that holds something of someone."""
    return [name for name in Base.metadata.tables if name not in isolation.SHARED] + ["fts_memory", "vec_memory_1"]


def test_the_database_itself_shows_nothing_unless_told_whose(store: Store, where: str) -> None:
    fill(store)
    with psycopg.connect(where) as raw:  # the application's own role, without the settings
        for table in content():
            assert raw.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,), table
        assert raw.execute("UPDATE memory SET text = 'forged'").rowcount == 0
        assert raw.execute("DELETE FROM event").rowcount == 0
        for sql in ("INSERT INTO space(user_key, agent_key, created_us) VALUES ('eve', '', 0)",):
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"):
                raw.execute(sql)
            raw.rollback()
    with psycopg.connect(servers.admin_address("memories")) as admin:  # there is something to be seen
        for table in content():
            (rows,) = admin.execute(f"SELECT count(*) FROM {table}").fetchone() or (0,)
            assert rows >= 2, table


def give_away(store: Store) -> None:
    with store.database.write() as connection:
        find_place(connection, ADA)
        connection.execute(sa.text("UPDATE memory SET space_id = space_id + 1"))


def test_a_scoped_transaction_sees_its_own_rows_in_every_table(store: Store) -> None:
    fill(store)
    with store.database.read() as connection:
        place = find_place(connection, ADA)
        assert place is not None
        assert connection.scalars(sa.text("SELECT text FROM memory")).all() == ["a secret of ada"]
        for table in content():
            rows = connection.scalar(sa.text(f"SELECT count(*) FROM {table}"))
            assert rows == (2 if table == "event" else 1), table
        for table in ("memory", "event", "kv_payload", "fts_memory", "vec_memory_1"):
            assert connection.scalars(sa.text(f"SELECT DISTINCT space_id FROM {table}")).all() == [place.space_id]
    with store.database.write() as connection:
        find_place(connection, ADA)
        stolen = connection.execute(sa.text("UPDATE memory SET pinned = true")).rowcount
        assert stolen == 1
    assert not store.scope(BOB).get("one").pinned
    with pytest.raises(StoreError, match="row-level security"):
        give_away(store)


def test_the_empty_scope_is_somebody_and_not_everybody(store: Store) -> None:
    fill(store)
    nobody = store.scope(Scope(user="", agent=""))
    assert nobody.count() == 0
    nobody.add([new("of the unnamed")])
    assert [memory.text for memory in nobody.list()] == ["of the unnamed"]
    with store.database.read() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM space")) == 0


@contextmanager
def explained(*settings: str) -> Iterator[list[str]]:
    """The plans of what is searched meanwhile, words and vectors."""
    plans: list[str] = []

    def explain(connection, _cursor, statement, parameters, _context, _many):
        if statement.startswith("WITH") or "vec_memory" in statement:
            raw = connection.connection.cursor()
            for setting in settings:
                raw.execute(f"SET LOCAL {setting}")
            raw.execute("EXPLAIN " + statement, parameters)
            plans.append("\n".join(row[0] for row in raw.fetchall()))

    sa.event.listen(sa.Engine, "before_cursor_execute", explain)
    try:
        yield plans
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", explain)


def test_words_and_vectors_are_looked_up_in_their_indexes(ada: ScopedMemories) -> None:
    ada.add([new(f"word{number} and apple", id=str(number)) for number in range(200)])
    with explained("enable_seqscan = off") as plans:
        assert ada.search("word7", embed("word7"))[0].memory.id == "7"
    words, vectors = plans
    assert "fts_memory_tsv" in words
    assert "SubPlan" not in words  # which would run for every pair of text and word
    assert "vec_memory_1_space" in vectors or "vec_memory_1_pkey" in vectors


def test_a_large_space_is_searched_by_hnsw(ada: ScopedMemories, monkeypatch: pytest.MonkeyPatch) -> None:
    from agentmem.store.postgres import search

    ada.add([new(f"word{number} and apple", id=str(number)) for number in range(60)])
    exact = [hit.memory.id for hit in ada.search("", embed("word7 and apple"), threshold=None, top_k=5)]
    monkeypatch.setattr(search, "EXACT_MAX", 10)
    with explained() as plans:
        assert [hit.memory.id for hit in ada.search("", embed("word7 and apple"), threshold=None, top_k=5)] == exact
    assert "vec_memory_1_hnsw" in plans[0]
    assert len(ada.search("", embed("apple"), threshold=None, top_k=99, tags=("none",))) == 0


def test_writers_of_new_spaces_and_of_one_space_lose_nothing(store: Store) -> None:
    together = threading.Barrier(4)

    def work(worker: int) -> None:
        together.wait(60)
        for number in range(5):
            for user in ("shared", f"own{worker}"):
                handle = store.scope(Scope(user=user))
                (memory,) = handle.add([new(f"{worker} says {number}", session="s")])
                handle.record_uses([(memory.id, 0.5)], turn=f"{worker}.{number}")
                attach(handle, memory, b"k" * 10, f"model-{number}")

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))  # raises what one of them raised
    assert store.scope(Scope(user="shared")).count() == 20
    stats = store.stats()
    assert (stats.memories, stats.uses, stats.warm) == (40, 40, 40)
    assert len(store.spaces()) == 5
    assert store.verify().ok


def sql(store: Store, statement: str) -> None:
    with store.database.write() as connection:
        see_all(connection)
        connection.exec_driver_sql(statement)


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        ("DELETE FROM vec_memory_1 WHERE memory_id = 3", "vector_index"),
        ("UPDATE vec_memory_1 SET space_id = 2 WHERE memory_id = 3", "vector_index"),
        ("DROP TABLE vec_memory_1", "vector_index"),
        ("DELETE FROM fts_memory WHERE memory_id = 3", "text_index"),
        ("UPDATE fts_memory SET tsv = array_to_tsvector(ARRAY['#all', '#1', 'forged'])", "text_index"),
        ("DROP TABLE fts_memory", "text_index"),
        ("UPDATE embedding SET vec = '\\x0000c07f' WHERE memory_id = 3", "embedding"),
        ("UPDATE kv_payload SET data = '\\x00' WHERE memory_id = 1", "payload"),
    ],
)
def test_damage_is_found_and_repaired(ada: ScopedMemories, store: Store, damage: str, kind: str) -> None:
    memories = ada.add([new(f"memory number {i} of mine", id=str(i), session="s") for i in range(6)])
    attach(ada, memories[0], b"inline KV")
    assert store.verify().ok
    sql(store, damage)
    report = store.verify()
    assert kind in {problem.kind for problem in report.problems}
    assert not any(problem.repaired for problem in report.problems)
    assert store.verify(repair=True).ok
    assert store.verify().problems == ()
    for pending in store.pending_embeddings():
        store.put_embeddings([(pending, embed(pending.text))])
    assert len(ada.search("memory", embed("memory"), threshold=None, top_k=20)) == 6


def test_what_cannot_be_a_store_is_refused_and_left_alone() -> None:
    with pytest.raises(StoreOpenError, match="superuser or BYPASSRLS"):
        Store.open(servers.admin_address("memories"))
    with pytest.raises(StoreOpenError, match="no pgvector"):
        Store.open(servers.create_database("bare", extension=False))
    foreign = servers.create_database("other_program")
    with psycopg.connect(foreign) as raw:
        raw.execute("CREATE TABLE invoices (id int)")
    with pytest.raises(StoreOpenError, match=r"tables of another program .invoices"):
        Store.open(foreign)
    latin = servers.create_database("latin", extension=False, more="ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    with pytest.raises(StoreOpenError, match="LATIN1"):
        Store.open(latin)
    for wrong in (foreign.replace("/other_program?", "/missing?"), "postgresql://nobody@127.0.0.1:1/x"):
        with pytest.raises(StoreOpenError, match="nothing was changed"):
            Store.open(wrong, lock_timeout=0.1)
    with pytest.raises(StoreOpenError, match="not an address"):
        Store.open("postgresql://host:port:port/x")


def test_a_newer_schema_is_left_alone() -> None:
    address = servers.create_database("newer")
    Store.open(address).close()
    with psycopg.connect(address) as raw:
        raw.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(SchemaTooNew, match="9999"):
        Store.open(address)


def test_four_that_open_an_empty_database_at_once_make_one_store() -> None:
    address = servers.create_database("opened_by_four")

    def work(user: str) -> None:
        with Store.open(address, embedder=EMBEDDER) as store:
            store.scope(Scope(user=user)).add([new(f"{user} was here")])

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, "abcd"))
    with Store.open(address, embedder=EMBEDDER) as store:
        assert {scope.user for scope in store.spaces()} == set("abcd")
        assert store.verify().ok


def test_an_old_process_does_not_write_what_a_newer_one_has_migrated() -> None:
    address = servers.create_database("overtaken")
    with Store.open(address, embedder=EMBEDDER) as store:
        ada = store.scope(ADA)
        ada.add([new("before")])
        with psycopg.connect(address) as raw:
            raw.execute("UPDATE alembic_version SET version_num = '9999'")
        with pytest.raises(SchemaTooNew, match="restart the process"):
            ada.add([new("after")])
        assert [memory.text for memory in ada.list()] == ["before"]


@pytest.mark.parametrize("table", sorted(Base.metadata.tables))
def test_somebody_has_said_whose_the_rows_of_every_table_are(table: str) -> None:
    columns = Base.metadata.tables[table].columns
    assert table in isolation.SHARED or table == "space" or {"space_id", "memory_id"} & set(columns.keys())
