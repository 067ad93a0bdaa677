"""Adding, reading, changing and listing memories of one scope."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import psycopg
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from pysqlite3 import dbapi2
from store_world import ADA, DIM, EMBEDDER, Where, attach, embed, new

from agentmem.errors import InvalidInput, NotFound, StoreError, StoreFull
from agentmem.records import Role, Scope, Tier
from agentmem.store import ScopedMemories, Store, index


def test_a_memory_comes_back_as_it_was_given(ada: ScopedMemories) -> None:
    when = datetime(2023, 5, 8, 13, 56, 7, 123456, tzinfo=timezone(timedelta(hours=2)))
    given_memory = new(
        "Naïve café 日本 \U0001f436\n\ttab 'quote' \"double\" ; DROP TABLE memory; --",
        turn="turn-1",
        role=Role.ASSISTANT,
        chunk_no=3,
        n_tokens=17,
        session="monday",
        created_at=when,
        tags=("pets", "a", "pets"),
        meta={"source": {"line": [1, 2.5, None, True]}},
        id="my-own-id",
        pinned=True,
    )
    (added,) = ada.add([given_memory])
    assert added == ada.get("my-own-id") == ada.list()[0]
    assert added.text == given_memory.text
    assert added.scope == Scope(user="ada", session="monday")
    assert (added.role, added.turn, added.chunk_no, added.n_tokens) == (Role.ASSISTANT, "turn-1", 3, 17)
    assert added.created_at == when
    assert added.created_at.utcoffset() == timedelta(0)
    assert added.tags == ("a", "pets")
    assert added.meta == {"source": {"line": [1, 2.5, None, True]}}
    assert (added.pinned, added.tier, added.kv_bytes, added.uses, added.last_used) == (True, Tier.COLD, 0, 0, None)


def test_adding_the_same_again_changes_nothing(ada: ScopedMemories) -> None:
    chunks = [new("one", turn="t", chunk_no=0), new("two", turn="t", chunk_no=1, id="mine")]
    first = ada.add(chunks)
    assert ada.add(chunks) == first
    assert ada.add([chunks[1], chunks[1]]) == [first[1], first[1]]
    assert ada.count() == 2
    assert len(ada.history("mine")) == 1


@pytest.mark.parametrize(
    ("clash", "message"),
    [
        ({"text": "other", "id": "mine"}, "id 'mine' is taken"),
        ({"text": "other", "turn": "t"}, "already has another chunk 0"),
        ({"text": "more", "turn": "t", "chunk_no": 1, "session": "elsewhere"}, "belongs to another session"),
    ],
)
def test_a_clash_writes_nothing(ada: ScopedMemories, clash: dict[str, object], message: str) -> None:
    ada.add([new("one", turn="t", id="mine")])
    with pytest.raises(InvalidInput, match=message):
        ada.add([new("innocent", session="fresh"), new(**clash)])
    assert [memory.text for memory in ada.list()] == ["one"]
    assert ada.search("innocent") == []


BAD = {
    "empty": ({"text": ""}, "empty"),
    "blank": ({"text": " \n\t"}, "empty"),
    "too long": ({"text": "x" * 1_000_000}, "1000000 characters"),
    "NUL": ({"text": "a\0b"}, "NUL character at index 1"),
    "lone surrogate": ({"text": "a\ud800"}, "lone surrogate .* at index 1"),
    "bytes": ({"text": b"bytes"}, "must be a str, not bytes"),
    "role": ({"role": "narrator"}, "role must be one of user, assistant, system, tool"),
    "turn": ({"turn": "a\nb"}, "turn must be printable"),
    "turn type": ({"turn": 7}, "turn must be a str"),
    "id": ({"id": "x" * 300}, "id has 300 characters"),
    "id blank": ({"id": ""}, "id is empty"),
    "chunk_no": ({"chunk_no": -1}, "chunk_no must be from 0"),
    "n_tokens": ({"n_tokens": True}, "n_tokens must be an int, not bool"),
    "naive date": ({"created_at": datetime(2024, 1, 1)}, "with time zone"),
    "tags": ({"tags": "pets"}, "tags must be a sequence"),
    "tag": ({"tags": ("",)}, "tag is empty"),
    "many tags": ({"tags": tuple(map(str, range(100)))}, "100 tags"),
    "meta": ({"meta": {"x": object()}}, "meta must be plain JSON"),
    "meta NaN": ({"meta": {"x": float("nan")}}, "meta must be plain JSON"),
    "meta key": ({"meta": {1: 2}}, "str keys"),
    "meta size": ({"meta": {"x": "y" * 100_000}}, "at most 65536"),
    "meta surrogate": ({"meta": {"x": ["\ud800"]}}, "surrogate"),
    "session": ({"session": "in\u200bvisible"}, "invisible character"),
    "pinned": ({"pinned": 1}, "pinned must be True or False"),
    "shape": ({"embedding": np.ones(DIM + 1, np.float32)}, r"shape \(16,\), not \(17,\)"),
    "matrix": ({"embedding": np.ones((1, DIM), np.float32)}, r"not \(1, 16\)"),
    "NaN": ({"embedding": np.full(DIM, np.nan, np.float32)}, "finite"),
    "infinity": ({"embedding": np.full(DIM, np.inf, np.float32)}, "finite"),
    "length": ({"embedding": np.ones(DIM, np.float32)}, "norm 4.0000"),
    "zero": ({"embedding": np.zeros(DIM, np.float32)}, "norm 0.0000"),
    "list": ({"embedding": [1.0] * DIM}, "numpy float array"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_stored_is_refused_whole(ada: ScopedMemories, store: Store, case: str) -> None:
    fields, message = BAD[case]
    with pytest.raises(InvalidInput, match=message):
        ada.add([new("good"), dataclasses.replace(new("fine"), **fields)])
    assert ada.count() == 0
    assert store.spaces() == []


def test_add_takes_new_memories_in_a_list(ada: ScopedMemories) -> None:
    assert ada.add([]) == []
    for wrong in ("text", [{"text": "x"}], 7, None):
        with pytest.raises(InvalidInput):
            ada.add(wrong)  # type: ignore[arg-type]
    assert ada.count() == 0


def test_unknown_and_unusable_ids(ada: ScopedMemories) -> None:
    (memory,) = ada.add([new("here")])
    for call in (ada.get, ada.pin, ada.delete, ada.history, lambda i: ada.update(i, tags=["x"])):
        with pytest.raises(NotFound, match="no memory 'nowhere' in this scope"):
            call("nowhere")
        with pytest.raises(InvalidInput):
            call("")
    with pytest.raises(NotFound):
        ada.delete([memory.id, "nowhere"])
    assert ada.get(memory.id) == memory
    with pytest.raises(InvalidInput):
        ada.get(7)  # type: ignore[arg-type]


def test_update_of_text_reindexes_and_drops_kv(ada: ScopedMemories, store: Store) -> None:
    (memory,) = ada.add([new("My dog is called Biscuit.")])
    assert attach(ada, memory, b"k" * 100)
    updated = ada.update(
        memory.id, text="My cat is called Tofu.", n_tokens=6, embedding=embed("My cat is called Tofu.")
    )
    assert (updated.text, updated.n_tokens, updated.tier) == ("My cat is called Tofu.", 6, Tier.COLD)
    assert ada.search("dog Biscuit") == []
    assert [hit.memory.id for hit in ada.search("cat")] == [memory.id]
    (hit,) = ada.search("", embed("My cat is called Tofu."), threshold=None, explain=True)
    assert hit.explain is not None
    assert hit.explain.dense == pytest.approx(1.0, abs=1e-5)
    assert [event.action for event in ada.history(memory.id)] == ["added", "kv_attached", "updated"]
    assert not attach(ada, memory, b"k" * 100)  # KV of the old text comes too late
    assert store.verify().ok


def test_update_with_the_same_text_keeps_the_kv(ada: ScopedMemories) -> None:
    (memory,) = ada.add([new("same")])
    attach(ada, memory, b"k" * 100)
    assert ada.update(memory.id, text="same", n_tokens=1, embedding=embed("same")).tier is Tier.WARM


def test_update_of_tags_and_meta(ada: ScopedMemories) -> None:
    (memory,) = ada.add([new("hello", tags=("old",), meta={"a": 1})])
    assert ada.update(memory.id, tags=["new", "b"]).tags == ("b", "new")
    assert ada.update(memory.id, meta={}).meta == {}
    assert ada.update(memory.id) == ada.get(memory.id)
    assert [event.reason for event in ada.history(memory.id)] == ["", "tags", "meta"]


@pytest.mark.parametrize(
    "change",
    [
        {"text": "new"},
        {"text": " ", "n_tokens": 1},
        {"embedding": embed("x")},
        {"n_tokens": 3},
        {"text": "new", "n_tokens": 1, "embedding": np.ones(3, np.float32)},
        {"text": "new", "n_tokens": 1, "tags": "oops"},
        {"meta": []},
    ],
)
def test_a_bad_update_changes_nothing(ada: ScopedMemories, change: dict[str, object]) -> None:
    (memory,) = ada.add([new("old")])
    with pytest.raises(InvalidInput):
        ada.update(memory.id, **change)  # type: ignore[arg-type]
    assert ada.get(memory.id) == memory


def test_pinning_is_noted_once(ada: ScopedMemories) -> None:
    (memory,) = ada.add([new("hello")])
    assert ada.pin(memory.id).pinned
    assert ada.pin(memory.id).pinned
    assert not ada.pin(memory.id, False).pinned
    assert [event.action for event in ada.history(memory.id)] == ["added", "pinned", "unpinned"]


def _month(month: int) -> datetime:
    return datetime(2024, month, 1, tzinfo=UTC)


def test_list_sorts_filters_and_pages(ada: ScopedMemories) -> None:
    memories = ada.add(
        [
            new("one", created_at=_month(3), tags=("red", "big"), n_tokens=5),
            new("two", created_at=_month(1), role=Role.ASSISTANT, session="s", tags=("red",), n_tokens=9),
            new("three", created_at=_month(2), pinned=True, n_tokens=1),
        ]
    )
    attach(ada, memories[0], b"k" * 10)
    ada.record_uses([(memories[2].id, 0.9), (memories[1].id, 0.1)], turn="q1")
    ada.record_uses([(memories[1].id, 0.2)], turn="q2")

    def texts(**how: object) -> list[str]:
        return [memory.text for memory in ada.list(**how)]  # type: ignore[arg-type]

    assert texts() == ["one", "three", "two"]
    assert texts(sort="created_at") == ["two", "three", "one"]
    assert texts(sort="-uses") == ["two", "three", "one"]
    assert texts(sort="uses") == ["one", "three", "two"]
    assert texts(sort="-attention") == ["three", "two", "one"]
    assert texts(sort="-frequency") == ["two", "three", "one"]
    assert texts(sort="n_tokens") == ["three", "one", "two"]
    assert texts(sort="-kv_bytes")[0] == "one"
    assert texts(sort="last_used")[0] == "one"
    assert texts(limit=1, offset=1) == ["three"]
    assert texts(limit=0) == []
    assert texts(offset=99) == []
    assert texts(role="assistant") == ["two"]
    assert texts(tags=["red"]) == ["one", "two"]
    assert texts(tags=["red", "big"]) == ["one"]
    assert texts(tags=["re"]) == []
    assert texts(tier="warm") == ["one"]
    assert texts(tier=Tier.COLD) == ["three", "two"]
    assert texts(session="s") == ["two"]
    assert texts(session="t") == []
    assert texts(since=_month(2)) == ["one", "three"]
    assert texts(until=_month(2)) == ["two"]
    assert texts(pinned=True) == ["three"]
    assert texts(pinned=False, since=_month(2)) == ["one"]
    assert texts(min_uses=2) == ["two"]
    assert ada.count() == 3
    assert ada.count(min_uses=1) == 2


@pytest.mark.parametrize(
    "how",
    [
        {"sort": "text; DROP TABLE memory"},
        {"sort": "created_us"},
        {"sort": "--uses"},
        {"sort": None},
        {"limit": -1},
        {"limit": 2.0},
        {"limit": True},
        {"offset": -1},
        {"role": "x' OR 1=1 --"},
        {"tier": "hot"},
        {"tier": 3},
        {"since": datetime(2024, 1, 1)},
        {"until": "yesterday"},
        {"pinned": "yes"},
        {"min_uses": -1},
        {"tags": "red"},
        {"colour": "red"},
    ],
)
def test_bad_listings_are_refused(ada: ScopedMemories, how: dict[str, object]) -> None:
    ada.add([new("one")])
    with pytest.raises(InvalidInput):
        ada.list(**how)  # type: ignore[arg-type]
    assert ada.count() == 1


def test_stats_count_what_is_there(ada: ScopedMemories, store: Store, where: Where) -> None:
    nothing = ada.stats()
    assert (nothing.memories, nothing.oldest) == (0, None)
    one, two = ada.add([new("eins", created_at=_month(1), n_tokens=3), new("zwölf", created_at=_month(2), pinned=True)])
    attach(ada, one, b"k" * 1000)
    attach(ada, one, b"k" * 50, "model-b")
    attach(ada, two, b"k" * 300_000)
    ada.record_uses([(one.id, 0.5)], turn="t")
    stats = ada.stats()
    assert (stats.memories, stats.pinned, stats.tokens, stats.uses) == (2, 1, 4, 1)
    assert (stats.text_bytes, stats.kv_bytes, stats.warm, stats.cold) == (4 + 6, 301_050, 2, 0)
    assert (stats.oldest, stats.newest) == (_month(1), _month(2))
    assert stats.file_bytes >= 300_000 + (where.stat().st_size if isinstance(where, Path) else 0)
    assert store.stats().memories == 2
    assert store.scope(Scope(user="nobody")).stats().memories == 0


@pytest.mark.sqlite  # a limit on the size of its file
def test_a_full_disk_rolls_back_and_the_store_goes_on(ada: ScopedMemories, store: Store) -> None:
    (first,) = ada.add([new("before")])
    ada.record_uses([(first.id, 0.5)], turn="t")
    with store.database.write() as connection:  # the pool holds one connection, and hands it out again
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
    with pytest.raises(StoreFull, match="nothing was changed"):
        ada.add([new(f"{i} " + "filler " * 2000) for i in range(50)])
    with store.database.write() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count=1000000")
    assert [memory.text for memory in ada.list()] == ["before"]
    assert ada.get(first.id).uses == 1  # the buffered use was not lost with the failed write
    ada.add([new("after")])
    assert store.verify().ok


def test_an_error_within_the_unit_of_work_leaves_no_trace(
    ada: ScopedMemories, store: Store, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop_at_the_index(_connection: object, *_arguments: object) -> None:
        if backend == "sqlite":
            raise dbapi2.OperationalError("disk I/O error")
        raise sa.exc.DBAPIError("INSERT", None, psycopg.errors.IoError("disk I/O error"))

    with monkeypatch.context() as patch:
        patch.setattr(index, "index_texts", stop_at_the_index)
        with pytest.raises(StoreError, match="disk I/O error"):
            ada.add([new("half")])
    assert ada.count() == 0
    assert store.verify().ok
    assert store.verify().checked == 0


@settings(max_examples=40)
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=200))
def test_any_text_comes_back_unchanged_and_is_found(text: str) -> None:
    with Store.open(":memory:", embedder=EMBEDDER) as store:
        handle = store.scope(ADA)
        if not text.strip():
            with pytest.raises(InvalidInput):
                handle.add([new(text, embedding=None)])
            return
        (memory,) = handle.add([new(text, embedding=embed("x"))])
        assert handle.get(memory.id).text == text
        handle.search(text)  # any text is a legal query
        assert [hit.memory.id for hit in handle.search(text, embed("x"), threshold=None)] == [memory.id]
        handle.delete(memory.id)
        assert handle.search(text, embed("x"), threshold=None) == []
