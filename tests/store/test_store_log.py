"""The log: plain values under ordered keys, changed in batches, compared by revision. On both engines."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_world import ADA, BOB, EMBEDDER, Where, new

from agentmem import Scope
from agentmem.errors import Conflict, InvalidInput
from agentmem.store import Append, Delete, Put, ScopedLog, Store
from agentmem.store.log_keys import below, decode, encode
from agentmem.store.places import see_all
from agentmem.store.schema import LogRow

SEGMENTS = st.one_of(
    st.integers(0, 2**63 - 1),
    st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=8).filter(str.strip),
)
KEYS = st.lists(SEGMENTS, min_size=1, max_size=4).map(tuple)


@pytest.fixture
def log(store: Store) -> ScopedLog:
    return store.log(ADA)


def order(key: tuple[Any, ...]) -> list[tuple[bool, Any]]:
    return [(isinstance(segment, str), segment.encode() if isinstance(segment, str) else segment) for segment in key]


@given(st.lists(KEYS, min_size=2, max_size=6), KEYS)
def test_keys_sort_by_their_segments_and_prefixes_are_whole(keys: list[tuple[Any, ...]], prefix: Any) -> None:
    assert [decode(encode(key)) for key in keys] == keys
    assert sorted(keys, key=encode) == sorted(keys, key=order)
    begin, end = below(prefix)
    for key in [*keys, prefix, (*prefix, "x"), (*prefix, 0)]:
        assert (begin <= encode(key) < end) == (len(key) > len(prefix) and key[: len(prefix)] == prefix)


def test_a_value_is_set_read_and_removed(log: ScopedLog) -> None:
    value = {"text": "Grüße", "list": [1, 2.5, None, True], "nested": {"a": {}}}
    entry = log.put(("sessions", "s1", "title"), value)
    assert (entry.key, entry.value, entry.revision) == (("sessions", "s1", "title"), value, 1)
    assert log.get(("sessions", "s1", "title")) == entry
    again = log.put(("sessions", "s1", "title"), None)
    assert (again.value, again.revision, again.created_at) == (None, 2, entry.created_at)
    assert again.updated_at >= entry.updated_at
    assert log.get_many([("sessions", "s1", "title"), "absent"]) == [again, None]
    assert log.delete(("sessions", "s1", "title"))
    assert not log.delete(("sessions", "s1", "title"))
    assert log.get(("sessions", "s1", "title")) is None
    assert log.put("one", "plain str keys are one segment").key == ("one",)


def test_appended_values_come_back_in_order_page_by_page(log: ScopedLog) -> None:
    for number in range(25):
        assert log.append(("s1", "items"), {"n": number}).key == ("s1", "items", number)
    log.append(("s1",), "not below the prefix")
    log.put(("s1", "items2", 0), "nor this")
    found, after = [], None
    while page := log.scan(("s1", "items"), after=after, limit=7):
        found += [entry.value["n"] for entry in page]
        after = page[-1].key
    assert found == list(range(25))
    newest = log.scan(("s1", "items"), limit=3, reverse=True)
    assert [entry.value["n"] for entry in newest] == [24, 23, 22]
    older = log.scan(("s1", "items"), before=newest[-1].key, limit=2, reverse=True)
    assert [entry.value["n"] for entry in older] == [21, 20]
    assert log.delete(("s1", "items", 24))
    assert log.append(("s1", "items"), "again").key[-1] == 24
    assert log.clear(("s1", "items")) == 25
    assert [entry.key for entry in log.scan()] == [("s1", 0), ("s1", "items2", 0)]


def test_a_batch_is_all_or_nothing_and_revisions_are_compared(log: ScopedLog) -> None:
    first = log.put("state", 1, expected=0)
    with pytest.raises(Conflict, match="revision 1, not 0"):
        log.put("state", 2, expected=0)
    with pytest.raises(Conflict, match=r"no key.*expected to have revision 3"):
        log.apply([Append("log", "x"), Put("other", 1, expected=3)])
    with pytest.raises(Conflict, match="revision 1, not 5"):
        log.apply([Put("new", 1), Delete("state", expected=5)])
    assert [entry.key for entry in log.scan()] == [("state",)], "of a batch that failed nothing is there"
    made = log.apply([Put("state", 2, expected=first.revision), Append("log", "a"), Append("log", "b"), Delete("nil")])
    assert [entry and (entry.key, entry.value, entry.revision) for entry in made] == [
        (("state",), 2, 2),
        (("log", 0), "a", 1),
        (("log", 1), "b", 1),
        None,
    ]


def test_of_many_writers_with_one_expectation_one_wins(where: Where, log: ScopedLog) -> None:
    log.put("counter", 0)
    won: list[int] = []

    def count() -> None:
        with Store.open(where, embedder=EMBEDDER, lock_timeout=60) as store:
            mine = store.log(ADA)
            for _ in range(10):
                while True:
                    entry = mine.get("counter")
                    assert entry is not None
                    try:
                        mine.put("counter", entry.value + 1, expected=entry.revision)
                    except Conflict:
                        continue
                    break
                won.append(mine.append("seen", None).key[-1])  # type: ignore[arg-type]  # a number is appended

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    entry = log.get("counter")
    assert entry is not None
    assert (entry.value, entry.revision) == (40, 41)
    assert sorted(won) == list(range(40)), "no number was given twice"


def test_users_and_agents_have_logs_of_their_own(store: Store) -> None:
    store.log(ADA).put("k", "ada's")
    bot = store.log(Scope(user=ADA.user, agent="bot"))
    assert store.log(BOB).get("k") is None
    assert bot.scan() == []
    assert store.log(BOB).scan() == []
    bot.put("k", "the bot's")
    assert store.log(BOB).clear() == 0
    assert [entry.value for entry in store.log(ADA).scan()] == ["ada's"]
    narrow = store.log(Scope(user=ADA.user, session="s1"))
    assert [entry.value for entry in narrow.scan()] == ["ada's"], "sessions share the log of their user"


def test_nothing_of_it_is_a_memory(store: Store) -> None:
    ada = store.scope(ADA)
    ada.add([new("My dog is called Biscuit.")])
    store.log(ADA).put("transcript", "My dog is called Biscuit.")
    assert ada.count() == 1
    assert len(ada.search("Biscuit", top_k=5)) == 1
    assert store.verify().ok


def test_what_has_expired_is_not_there_and_makes_way(log: ScopedLog) -> None:
    soon = datetime.now(UTC) + timedelta(seconds=0.3)
    log.apply([Put("short", 1, expires_at=soon), Append("list", 1, expires_at=soon), Put("long", 2)])
    time.sleep(0.4)
    assert log.get("short") is None
    assert [entry.key for entry in log.scan()] == [("long",)]
    assert log.put("short", 3, expected=0).revision == 1
    assert log.append("list", 4).key == ("list", 0)


def test_what_has_expired_leaves_the_files_when_the_store_is_opened(where: Where) -> None:
    soon = datetime.now(UTC) + timedelta(seconds=0.3)
    with Store.open(where, embedder=EMBEDDER) as store:
        store.log(ADA).put("short", "of-no-use-now-4711", expires_at=soon)
        store.log(BOB).put("long", "stays-here")
    time.sleep(0.4)
    with Store.open(where, embedder=EMBEDDER) as store, store.database.read() as connection:
        see_all(connection)
        assert list(connection.scalars(sa.select(LogRow.value))) == ["stays-here"]
    if isinstance(where, Path):
        data = b"".join(path.read_bytes() for path in where.parent.rglob("*") if path.is_file())
        assert b"stays-here" in data
        assert b"of-no-use-now-4711" not in data


def test_forgetting_a_user_forgets_the_log_and_no_other(store: Store) -> None:
    store.log(ADA).put("k", "ada's")
    store.log(BOB).put("k", "bob's")
    store.scope(ADA).forget_scope()
    assert store.log(ADA).scan() == []
    assert [entry.value for entry in store.log(BOB).scan()] == ["bob's"]


@pytest.mark.sqlite
def test_nothing_of_what_was_removed_is_left_in_the_files(where: Where) -> None:
    with Store.open(where, embedder=EMBEDDER) as store:
        log = store.log(ADA)
        log.put(("secret-key-9137", "a"), "secret-value-4711 " * 500)
        log.put("stays", "stays-here")
        log.delete(("secret-key-9137", "a"))
    assert isinstance(where, Path)
    data = b"".join(path.read_bytes() for path in where.parent.rglob("*") if path.is_file())
    assert b"stays-here" in data
    assert b"secret-value-4711" not in data
    assert b"secret-key-9137" not in data


def test_it_is_there_after_a_restart(where: Where) -> None:
    with Store.open(where, embedder=EMBEDDER) as store:
        entry = store.log(ADA).append(("s", "items"), {"role": "user"})
    with Store.open(where, embedder=EMBEDDER) as store:
        assert store.log(ADA).scan(("s",)) == [entry]


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("", "empty"),
        ((), "1 to 16 segments"),
        (("a",) * 17, "1 to 16 segments"),
        ((True,), "whole number"),
        ((-1,), "whole number"),
        ((2**63,), "whole number"),
        ((1.5,), "whole number"),
        (("a\0b",), "NUL"),
        (("x" * 513,), "512"),
        (7, "1 to 16 segments"),
    ],
)
def test_keys_that_are_none_are_refused(log: ScopedLog, key: Any, message: str) -> None:
    for call in (log.get, log.delete, lambda k: log.put(k, 1), lambda k: log.scan(after=k)):
        with pytest.raises(InvalidInput, match=message):
            call(key)


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, object(), "a\0b", {"k": "\ud800"}, b"bytes"])
def test_values_that_are_no_json_are_refused(log: ScopedLog, value: Any) -> None:
    with pytest.raises(InvalidInput, match="value"):
        log.put("k", value)
    assert log.scan() == []


def test_what_is_too_much_is_refused(log: ScopedLog) -> None:
    with pytest.raises(InvalidInput, match="at most"):
        log.put("k", "x" * (16 * 2**20))
    with pytest.raises(InvalidInput, match="at most 1000"):
        log.apply([Delete("k")] * 1001)
    with pytest.raises(InvalidInput, match="Put, an Append or a Delete"):
        log.apply(["k"])  # type: ignore[list-item]
    with pytest.raises(InvalidInput, match="limit"):
        log.scan(limit=0)
    with pytest.raises(InvalidInput, match="expected"):
        log.put("k", 1, expected=-1)
    assert log.apply([]) == []


STEPS = st.lists(
    st.tuples(st.sampled_from(["put", "append", "delete", "clear"]), KEYS, st.integers(0, 9)), min_size=1, max_size=12
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS)
def test_it_is_a_sorted_dict(store: Store, steps: list[tuple[str, tuple[Any, ...], int]]) -> None:
    log, model = store.log(Scope(user="model")), {}
    log.clear()
    for what, key, value in steps:
        if what == "put":
            log.put(key, value)
            model[key] = value
        elif what == "append" and (2**63 - 1) not in key:
            numbers = [k[len(key)] for k in model if k[: len(key)] == key and len(k) > len(key)]
            next_number = max((n for n in numbers if isinstance(n, int)), default=-1) + 1
            if next_number < 2**63:
                assert log.append(key, value).key == (*key, next_number)
                model[(*key, next_number)] = value
        elif what == "delete":
            assert log.delete(key) == (model.pop(key, None) is not None)
        elif what == "clear":
            gone = [k for k in model if k[: len(key)] == key and len(k) > len(key)]
            assert log.clear(key) == len(gone)
            for k in gone:
                del model[k]
    assert [(entry.key, entry.value) for entry in log.scan(limit=1000)] == sorted(
        model.items(), key=lambda item: order(item[0])
    )
