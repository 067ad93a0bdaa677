"""Pages that go on where the one before ended, and what a resent dialogue is known by; on both engines."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from store_world import ADA, BOB, new

from agentmem.errors import InvalidInput
from agentmem.records import Memory, Scope
from agentmem.store import ScopedMemories, Store
from agentmem.store.known import ever_stored, homes
from agentmem.store.paging import page

DAY = datetime(2026, 3, 1, tzinfo=UTC)
SORTS = ["created_at", "last_used", "uses", "attention", "frequency", "n_tokens", "kv_bytes"]


def all_pages(store: Store, sort: str, limit: int, scope: Scope = ADA) -> list[Memory]:
    found: list[Memory] = []
    cursor = None
    while True:
        part, cursor = page(store, scope, sort=sort, limit=limit, cursor=cursor, filters={})
        found += part
        if cursor is None:
            return found
        assert len(part) == limit


@pytest.mark.parametrize("sort", [f"{sign}{key}" for key in SORTS for sign in ("", "-")])
def test_pages_are_the_list_in_pieces(store: Store, ada: ScopedMemories, sort: str) -> None:
    # Many ties: three turns at each moment, four chunks each, few lengths.
    ada.add(
        [
            new(f"word{number} {'x ' * (number % 3)}", turn=f"t{number // 4}", chunk_no=number % 4, n_tokens=number % 3)
            for number in range(24)
        ]
    )
    for number, memory in enumerate(ada.list()):
        if number % 3:
            ada.record_uses([(memory.id, 0.1 * (number % 4))], turn=f"reading {number}")
    whole = ada.list(sort=sort, limit=100)
    pages = all_pages(store, sort, 5)
    key = sort.removeprefix("-")
    assert {memory.id for memory in pages} == {memory.id for memory in whole}
    assert len(pages) == len(whole) == 24
    values = [getattr(memory, key) or (DAY if key == "last_used" else 0) for memory in pages]
    if key == "frequency":  # ages between two pages, all alike
        values = [round(value, 6) for value in values]
    assert values == sorted(values, reverse=sort.startswith("-"))


def test_what_is_written_or_deleted_meanwhile_repeats_and_hides_nothing(store: Store, ada: ScopedMemories) -> None:
    ids = [m.id for m in ada.add([new(f"text {n}", created_at=DAY + timedelta(hours=n)) for n in range(6)])]
    first, cursor = page(store, ADA, sort="created_at", limit=3, cursor=None, filters={})
    ada.delete([first[-1].id, ids[4]])
    ada.add([new("older", created_at=DAY - timedelta(days=1)), new("newer", created_at=DAY + timedelta(days=1))])
    rest, end = page(store, ADA, sort="created_at", limit=10, cursor=cursor, filters={})
    assert [m.id for m in first] == ids[:3]
    assert [m.text for m in rest] == ["text 3", "text 5", "newer"]
    assert end is None


def test_a_cursor_opens_no_other_scope_and_no_other_list(store: Store, ada: ScopedMemories) -> None:
    ada.add([new(f"text {n}") for n in range(4)])
    _, cursor = page(store, ADA, sort="created_at", limit=2, cursor=None, filters={})
    assert page(store, BOB, sort="created_at", limit=2, cursor=cursor, filters={}) == ([], None)
    store.scope(BOB).add([new("bob's")])
    assert [m.text for m in page(store, BOB, sort="created_at", limit=2, cursor=cursor, filters={})[0]] == ["bob's"]
    for other in ("-created_at", "uses"):
        with pytest.raises(InvalidInput, match="cursor"):
            page(store, ADA, sort=other, limit=2, cursor=cursor, filters={})
    for broken in ("", "x", "[]", (cursor or "")[:-4]):
        with pytest.raises(InvalidInput, match="cursor"):
            page(store, ADA, sort="created_at", limit=2, cursor=broken, filters={})


def test_turns_are_found_by_their_ids(store: Store, ada: ScopedMemories) -> None:
    ada.add([new("one", turn="a"), new("two", turn="a", chunk_no=1), new("three", turn="b"), new("four", turn="c")])
    store.scope(BOB).add([new("bob's", turn="a")])
    assert {m.text for m in ada.list(turns=["a", "c", "absent"])} == {"one", "two", "four"}
    assert ada.list(turns=[]) == []


def test_what_was_ever_stored_is_known_after_it_was_forgotten(store: Store, ada: ScopedMemories) -> None:
    one, two = ada.add([new("one", id="1"), new("two", id="2")])
    ada.delete(one.id)
    assert ever_stored(store, ADA, ["1", "2", "3"]) == {"1", "2"}
    assert ever_stored(store, BOB, ["1", "2", "3"]) == set()
    assert ever_stored(store, ADA, []) == set()
    assert two.id in {m.id for m in ada.list()}
    ada.forget_scope()
    assert ever_stored(store, ADA, ["1", "2", "3"]) == set()


def test_of_an_id_alone_it_is_known_whose_it_was(store: Store, ada: ScopedMemories) -> None:
    cook = Scope(user=ADA.user, agent="cook")
    ada.add([new("one", id="1"), new("two", id="2")])
    store.scope(BOB).add([new("bob's", id="2")])
    store.scope(cook).add([new("three", id="3")])
    ada.delete("1")
    assert homes(store, ["1"]) == [ADA]
    assert homes(store, ["2"]) == [ADA, BOB]
    assert homes(store, ["absent", "3", "1"]) == [ADA, cook]
    assert homes(store, []) == homes(store, ["absent"]) == []
    assert store.spaces(ADA.user) == [ADA, cook]
    assert store.spaces("nobody") == []
    ada.forget_scope()
    assert homes(store, ["2"]) == [BOB]
    with pytest.raises(InvalidInput):
        homes(store, [""])
