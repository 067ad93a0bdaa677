"""SQLite's text index: the spaces are spread over a few FTS5 tables."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from store_world import EMBEDDER, new

from agentmem.errors import StoreError
from agentmem.records import Scope
from agentmem.store import Store
from agentmem.store.sqlite_search import SHARDS, text_table, text_tables

pytestmark = pytest.mark.sqlite  # the tables of its text index
USERS = [Scope(user=f"user {number}") for number in range(SHARDS + 3)]


def found(store: Store, scope: Scope) -> list[str]:
    hits = store.scope(scope).search("boat", threshold=None)
    return sorted(hit.memory.text for hit in hits)


@pytest.fixture
def many(store: Store) -> Store:
    for scope in USERS:
        store.scope(scope).add([new(f"the boat of {scope.user}"), new("nothing else")])
    return store


def test_spaces_that_share_a_table_see_their_own(many: Store) -> None:
    with many.database.read() as connection:
        assert len(text_tables(connection)) == SHARDS
        rows = {
            table: connection.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar_one()
            for table in text_tables(connection)
        }
    assert rows == {
        table: 2 * count for table, count in Counter(text_table(key + 1) for key in range(SHARDS + 3)).items()
    }
    assert [found(many, scope) for scope in USERS] == [[f"the boat of {scope.user}"] for scope in USERS]


def test_one_that_leaves_takes_nothing_of_its_neighbour(many: Store) -> None:
    first, neighbour = USERS[0], USERS[SHARDS]
    assert text_table(1) == text_table(1 + SHARDS)
    many.scope(first).forget_scope()
    assert found(many, neighbour) == [f"the boat of user {SHARDS}"]
    assert many.verify().ok


def test_a_store_is_created_without_tables_that_nobody_needs(store: Store) -> None:
    store.scope(USERS[0]).add([new("one user")])
    with store.database.read() as connection:
        assert text_tables(connection) == ["fts_memory_1"]


def test_a_lost_table_is_an_error_and_not_an_empty_answer(many: Store, path: Path) -> None:
    with many.database.write() as connection:
        connection.exec_driver_sql("DROP TABLE fts_memory_3")
    with pytest.raises(StoreError, match="fts_memory_3"):
        found(many, USERS[2])
    many.close()
    with Store.open(path, embedder=EMBEDDER) as store:
        assert {problem.kind for problem in store.verify(repair=True).problems} == {"text_index"}
        assert found(store, USERS[2]) == ["the boat of user 2"]
