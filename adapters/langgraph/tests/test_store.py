"""What an oracle does not say: memories, time to live, pages, restarts, several hands at once, bad input."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from langgraph.store.base import GetOp, InvalidNamespaceError, PutOp, SearchOp

from agentmem import InvalidInput, MemoryLLM

from langgraph_agentmem_kv import AgentMemStore

FACTS = {"tea": "Ana likes green tea.", "car": "Ana owns a red car.", "cello": "Ana's sister plays the cello."}


def fill(store: AgentMemStore) -> None:
    for key, text in FACTS.items():
        store.put(("mem", "ana"), key, {"text": text})


def texts(llm: MemoryLLM, user: str = "ada") -> list[str]:
    return sorted(memory.text for memory in llm.memories(user=user).list())


def test_a_query_finds_by_meaning_and_by_words(store: AgentMemStore) -> None:
    fill(store)
    store.put(("mem", "bea"), "tea", {"text": "Bea likes green tea."})
    first, *rest = store.search(("mem", "ana"), query="Which tea does Ana like?")
    assert first.key == "tea"
    assert first.value == {"text": FACTS["tea"]}
    assert first.score is not None
    assert [item.key for item in rest] == sorted((item.key for item in rest), key=lambda key: key != rest[0].key)
    assert {item.namespace for item in (first, *rest)} == {("mem", "ana")}
    everywhere = store.search(("mem",), query="Who likes green tea?", limit=2)
    assert {item.namespace[1] for item in everywhere} == {"ana", "bea"}


def test_what_is_put_is_read_by_attention(store: AgentMemStore, llm: MemoryLLM) -> None:
    store.put(("mem", "ada"), "dog", {"text": "My dog is called Biscuit."})
    reply = llm.conversation(user="ada").chat("What is my dog called?", remember=False)
    assert reply.text == "Your dog is called Biscuit."
    store.delete(("mem", "ada"), "dog")
    assert "Biscuit" not in llm.conversation(user="ada").chat("What is my dog called?", remember=False).text


def test_memories_that_are_no_items_are_not_found(store: AgentMemStore, llm: MemoryLLM) -> None:
    llm.memories(user="ada").add("I like green tea.", meta={"topic": "tea"})
    assert store.search((), query="tea") == []
    store.put(("a",), "one", {"text": "black tea"})
    assert [item.key for item in store.search((), query="green tea")] == ["one"]


def test_only_what_is_indexed_is_a_memory(store: AgentMemStore, llm: MemoryLLM) -> None:
    store.put(("a",), "state", {"text": "step one"}, index=False)
    assert texts(llm) == []
    store.put(("a",), "one", {"text": "green tea", "n": 7}, index=["text"])
    store.put(("a",), "two", {"text": "a red car", "notes": ["fast", "loud"]}, index=["text", "notes[*]"])
    store.put(("a",), "all", {"x": 1, "y": "z"})
    store.put(("a",), "none", {})
    store.put(("a",), "blank", {"text": "  "})
    assert texts(llm) == sorted(["green tea", "a red car\nfast\nloud", '{"x": 1, "y": "z"}', "{}"])
    store.put(("a",), "one", {"text": "black tea"}, index=["text"])
    assert "green tea" not in texts(llm)
    assert "black tea" in texts(llm)
    store.put(("a",), "one", {"text": "black tea"}, index=False)
    assert "black tea" not in texts(llm)
    assert {item.key for item in store.search(("a",))} == {"state", "one", "two", "all", "none", "blank"}


def test_putting_the_same_again_encodes_nothing_anew(store: AgentMemStore, llm: MemoryLLM) -> None:
    store.put(("a",), "one", {"text": "green tea"})
    (before,) = llm.memories(user="ada").list()
    store.put(("a",), "one", {"text": "green tea"})
    (after,) = llm.memories(user="ada").list()
    assert (after.id, after.created_at) == (before.id, before.created_at)


def test_a_long_text_is_one_item(store: AgentMemStore, llm: MemoryLLM) -> None:
    text = " ".join(f"Drawer {n} holds the keys of house {n}." for n in range(60))
    store.put(("a",), "cabinet", {"text": text})
    assert len(texts(llm)) > 2
    assert [item.key for item in store.search(("a",), query="Which drawer holds the keys of house 41?")] == ["cabinet"]
    store.delete(("a",), "cabinet")
    assert texts(llm) == []


def test_default_fields(llm: MemoryLLM) -> None:
    store = AgentMemStore(llm, user="ada", fields=["text"])
    store.put(("a",), "one", {"text": "green tea", "secret": "xyzzy"})
    store.put(("a",), "two", {"secret": "xyzzy"})
    assert texts(llm) == ["green tea"]


def test_pages_follow_each_other(store: AgentMemStore) -> None:
    for number in range(25):
        store.put(("a", f"b{number % 3}"), f"{number:02}", {"n": number}, index=False)
    whole = [item.key for item in store.search(("a",), limit=100)]
    assert len(set(whole)) == 25
    pages = [store.search(("a",), limit=4, offset=start) for start in range(0, 28, 4)]
    assert [item.key for page in pages for item in page] == whole
    even = [item.key for item in store.search(("a",), filter={"n": {"$lt": 10}}, limit=3, offset=6)]
    assert even == [key for key in whole if int(key) < 10][6:9]
    fill(store)
    ranked = [item.key for item in store.search((), query="tea", limit=100)]
    assert len(ranked) == 28
    assert [item.key for item in store.search((), query="tea", limit=2, offset=1)] == ranked[1:3]


def test_reads_of_a_batch_see_what_was_there_before(store: AgentMemStore) -> None:
    store.put(("a",), "one", {"n": 1}, index=False)
    found = store.batch(
        [
            PutOp(("a",), "one", {"n": 2}, index=False),
            GetOp(("a",), "one"),
            PutOp(("a",), "one", {"n": 3}, index=False),
            SearchOp(("a",)),
        ]
    )
    assert found[1].value == {"n": 1}
    assert [item.value for item in found[3]] == [{"n": 1}]
    assert store.get(("a",), "one").value == {"n": 3}


def test_times(store: AgentMemStore) -> None:
    store.put(("a",), "one", {"n": 1}, index=False)
    first = store.get(("a",), "one")
    store.put(("a",), "one", {"n": 2}, index=False)
    second = store.get(("a",), "one")
    assert first.created_at == second.created_at
    assert first.updated_at < second.updated_at


# --------------------------------------------------------------------------------------------------------- time to live

SECOND = 1 / 60


def test_what_expires_is_gone_from_both(store: AgentMemStore, llm: MemoryLLM) -> None:
    store.put(("a",), "brief", {"text": "green tea"}, ttl=1.5 * SECOND)
    store.put(("a",), "lasting", {"text": "a red car"})
    assert {item.key for item in store.search(("a",), query="tea", refresh_ttl=False)} == {"brief", "lasting"}
    time.sleep(1.6)
    assert store.get(("a",), "brief") is None
    assert [item.key for item in store.search(("a",), query="tea")] == ["lasting"]
    assert texts(llm) == ["a red car"]
    assert store.list_namespaces() == [("a",)]


def test_reading_makes_it_last_for_its_time_again(store: AgentMemStore, llm: MemoryLLM) -> None:
    for key in ("got", "found", "left"):
        store.put(("a", key), key, {"text": key}, ttl=2 * SECOND)
    updated = store.get(("a", "got"), "got", refresh_ttl=False).updated_at
    for _ in range(3):
        time.sleep(0.8)
        assert store.get(("a", "got"), "got").updated_at == updated
        assert [item.key for item in store.search(("a", "found"), refresh_ttl=True)] == ["found"]
        store.search(("a", "left"), refresh_ttl=False)
    assert store.get(("a", "left"), "left") is None
    assert texts(llm) == ["found", "got"]
    store.put(("a", "got"), "got", {"text": "got"}, ttl=None)
    (kept,) = [memory for memory in llm.memories(user="ada").list() if memory.text == "got"]
    assert kept.expires_at is None


def test_a_default_time_to_live(llm: MemoryLLM) -> None:
    store = AgentMemStore(llm, user="ada", ttl={"default_ttl": 60.0, "refresh_on_read": False})
    store.put(("a",), "one", {"text": "green tea"})
    store.put(("a",), "two", {"text": "a red car"}, ttl=None)
    by_text = {memory.text: memory for memory in llm.memories(user="ada").list()}
    assert by_text["a red car"].expires_at is None
    lasting = by_text["green tea"].expires_at - by_text["green tea"].created_at
    assert timedelta(minutes=59) < lasting < timedelta(minutes=61)
    before = by_text["green tea"].expires_at
    store.get(("a",), "one")
    assert llm.memories(user="ada").get(by_text["green tea"].id).expires_at == before


# ------------------------------------------------------------------------------------- users, restarts, several at once


def test_users_and_agents_are_apart(llm: MemoryLLM, store: AgentMemStore) -> None:
    fill(store)
    for other in (AgentMemStore(llm, user="bob"), AgentMemStore(llm, user="ada", agent="cook")):
        assert other.get(("mem", "ana"), "tea") is None
        assert other.search((), query="tea") == []
        assert other.list_namespaces() == []


def test_it_is_all_there_after_a_restart(tmp_path: Path) -> None:
    for _ in range(2):
        with MemoryLLM(store=tmp_path / "memory.db") as llm:
            store = AgentMemStore(llm, user="ada")
            fill(store)
    with MemoryLLM(store=tmp_path / "memory.db") as llm:
        store = AgentMemStore(llm, user="ada")
        assert store.get(("mem", "ana"), "tea").value == {"text": FACTS["tea"]}
        assert store.search(("mem",), query="cello")[0].key == "cello"
        assert len(texts(llm)) == len(FACTS)


def test_threads_that_put_the_same_key_leave_one_memory(store: AgentMemStore, llm: MemoryLLM) -> None:
    other = AgentMemStore(llm, user="ada")  # with a lock of its own, as another process has
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: (store, other)[n % 2].put(("a",), "one", {"text": f"tea number {n}"}), range(12)))
    assert texts(llm) == [store.get(("a",), "one").value["text"]]


async def test_async(store: AgentMemStore) -> None:
    await asyncio.gather(*(store.aput(("a",), str(n), {"n": n}, index=False) for n in range(10)))
    assert {item.value["n"] for item in await store.asearch(("a",))} == set(range(10))
    assert (await store.aget(("a",), "3")).value == {"n": 3}
    await store.adelete(("a",), "3")
    assert await store.aget(("a",), "3") is None
    assert await store.alist_namespaces(prefix=("a",)) == [("a",)]


def test_more_than_a_page_at_once(store: AgentMemStore) -> None:
    store.batch([PutOp(("a", str(n % 7)), str(n), {"n": n}, index=False) for n in range(2100)])
    assert len(store.search((), limit=5000)) == 2100
    assert len(store.list_namespaces()) == 7
    store.batch([PutOp(("a", str(n % 7)), str(n), None) for n in range(2100)])
    assert store.search((), limit=5000) == []


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("namespace", "key", "value"),
    [
        (("a.b",), "k", {}),
        (("",), "k", {}),
        ((), "k", {}),
        ((3,), "k", {}),
        (("langgraph",), "k", {}),
        (("a\x00",), "k", {}),
        (tuple("abcdefghijklmnopqrs"), "k", {}),
        (("a",), "", {}),
        (("a",), "k", {"x": object()}),
        (("a",), "k", {"x": float("nan")}),
        (("a",), "k", {"x": "\ud83d"}),
    ],
)
def test_what_cannot_be_kept_is_refused_whole(store: AgentMemStore, namespace: Any, key: str, value: Any) -> None:
    with pytest.raises((InvalidNamespaceError, InvalidInput)):
        store.put(namespace, key, value)
    assert store.search((), limit=10) == []


def test_bad_operations_are_refused(store: AgentMemStore) -> None:
    fill(store)
    with pytest.raises(ValueError, match=r"unknown operator \['\$in'\]"):
        store.search(("mem",), filter={"text": {"$in": ["x"]}})
    with pytest.raises(ValueError, match="unknown operation"):
        store.batch(["get"])  # type: ignore[list-item]
    with pytest.raises(InvalidNamespaceError):
        store.batch([GetOp(("a.b",), "k")])
