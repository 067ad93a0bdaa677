"""mem0's calls over a ``MemoryLLM``. That they are mem0's, ``against_mem0.py`` compares (``make test-mem0``)."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from agentmem import InvalidInput, MemoryLLM
from agentmem.compat.mem0 import Memory

TEA, CAR = "Ana likes green tea.", "Ana drives a red car."
LONG = " ".join(f"Drawer {n} holds the keys of house {n}." for n in range(60))
NOBODY = "8f0f8b3e-0000-4000-8000-000000000000"


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MemoryLLM]:
    with MemoryLLM(store=tmp_path_factory.mktemp("store") / "memory.db") as opened:
        yield opened


@pytest.fixture
def memory(llm: MemoryLLM) -> Iterator[Memory]:
    yield (memory := Memory(llm))
    memory.reset()


def add(memory: Memory, text: str, user_id: str = "ana", **more: Any) -> str:
    (added,) = memory.add(text, user_id=user_id, **more)["results"]
    return added["id"]


def texts(found: dict[str, Any]) -> list[str]:
    return [one["memory"] for one in found["results"]]


def everything(memory: Memory, user_id: str = "ana", **filters: Any) -> list[str]:
    return texts(memory.get_all(filters={"user_id": user_id, **filters}, top_k=1000))


def test_what_is_added_is_read_by_attention(memory: Memory, llm: MemoryLLM) -> None:
    memory.add("My dog is called Biscuit.", user_id="ana")
    assert llm.conversation(user="ana").chat("What is my dog called?").text == "Your dog is called Biscuit."
    assert "Your dog is called Biscuit." in everything(memory, role="assistant")  # and what was said is found here
    memory.delete_all(user_id="ana")
    assert "Biscuit" not in llm.conversation(user="ana").chat("What is my dog called?").text


def test_messages_are_kept_as_they_are(memory: Memory) -> None:
    said = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": TEA}], "name": "Ana"},
        {"role": "assistant", "content": "Noted."},
    ]
    added = memory.add(said, user_id="ana", agent_id="cook", run_id="monday", metadata={"topic": "tea"})["results"]
    assert [(one["memory"], one["event"], one["role"], one["actor_id"]) for one in added] == [
        (TEA, "ADD", "user", "Ana"),
        ("Noted.", "ADD", "assistant", None),
    ]
    got = memory.get(added[0]["id"])
    assert got == got | {"user_id": "ana", "agent_id": "cook", "run_id": "monday", "metadata": {"topic": "tea"}}
    assert got["created_at"] == got["updated_at"]
    assert datetime.fromisoformat(got["created_at"]).tzinfo is not None
    assert memory.get(NOBODY) is None


def test_search_finds_by_words_and_meaning(memory: Memory) -> None:
    for text in (TEA, CAR, "Ana's sister plays the cello."):
        add(memory, text)
    found = memory.search("Which tea does Ana like?", filters={"user_id": "ana"}, explain=True)["results"]
    assert found[0]["memory"] == TEA
    assert 1 >= found[0]["score"] > 0.9
    assert found[0]["score_details"]["lexical_z"] > found[-1]["score_details"]["lexical_z"]
    assert [one["score"] for one in found] == sorted((one["score"] for one in found), reverse=True)
    assert len(texts(memory.search("tea", filters={"user_id": "ana"}, top_k=2))) == 2
    assert texts(memory.search("tea", filters={"user_id": "ana"}, threshold=0.9)) == [TEA]
    assert texts(memory.search("tea", filters={"user_id": "bob"})) == []


def test_agents_of_a_user_are_searched_together_and_ranked_as_one(memory: Memory) -> None:
    add(memory, TEA, agent_id="cook")
    add(memory, "Noted.", agent_id="cook")
    add(memory, CAR)  # alone in its space, where it stands out for every word
    asked = "Which tea does Ana like?"
    assert texts(memory.search(asked, filters={"user_id": "ana"}))[0] == TEA
    assert texts(memory.search(asked, filters={"user_id": "ana", "agent_id": "cook"}))[0] == TEA
    assert everything(memory) == [CAR, "Noted.", TEA]
    assert everything(memory, agent_id="cook") == ["Noted.", TEA]
    assert everything(memory, agent_id={"ne": "cook"}) == []
    assert everything(memory, agent_id="*") == ["Noted.", TEA]


def test_filters(memory: Memory) -> None:
    for number, topic in enumerate(["tea", "car", "tea", None]):
        meta = {"n": number} | ({"topic": topic} if topic else {})
        add(memory, f"Text {number}", metadata=meta, run_id=f"r{number % 2}")

    def found(**filters: Any) -> set[int]:
        listed, searched = everything(memory, **filters), memory.search("text", filters={"user_id": "ana", **filters})
        assert sorted(listed) == sorted(texts(searched))
        return {int(text[-1]) for text in listed}

    assert found(topic="tea") == {0, 2}
    assert found(topic="tea", run_id="r1") == set()
    assert found(run_id="r1") == {1, 3}
    assert found(run_id={"in": ["r0", "r2"]}) == {0, 2}
    assert found(n=1.0) == {1}
    assert found(n="1") == set()
    assert found(n={"gt": 0, "lte": 2}) == {1, 2}
    assert found(topic={"ne": "tea"}) == {1}
    assert found(topic={"nin": ["car"]}) == {0, 2}
    assert found(topic={"icontains": "EA"}) == {0, 2}
    assert found(n={"contains": "a"}) == set()
    assert found(topic="*") == {0, 1, 2}
    assert found(OR=[{"n": 3}, {"topic": "car"}]) == {1, 3}
    assert found(AND=[{"topic": "tea"}, {"NOT": [{"n": 0}]}]) == {2}
    assert found(role="user", data={"contains": "2"}) == {2}
    assert found(role="nobody") == set()


def test_an_update_keeps_the_id(memory: Memory, llm: MemoryLLM) -> None:
    id = add(memory, TEA, metadata={"topic": "tea", "n": 1}, run_id="r1")
    before = memory.get(id)
    assert memory.update(id, text="Ana likes black tea.", metadata={"n": 2, "user_id": "bob"})["message"]
    after = memory.get(id)
    assert after["memory"] == "Ana likes black tea."
    assert after["metadata"] == {"topic": "tea", "n": 2}
    assert after["created_at"] == before["created_at"] < after["updated_at"]
    assert (after["user_id"], after["run_id"]) == ("ana", "r1")
    assert memory.update(id, data=TEA)
    assert memory.get(id)["memory"] == TEA
    assert memory.update(id, metadata={"n": 3})
    assert memory.get(id)["metadata"]["n"] == 3
    assert [m.text for m in llm.memories(user="ana").list()] == [TEA]


def test_long_texts_are_one_memory(memory: Memory, llm: MemoryLLM) -> None:
    id = add(memory, LONG, run_id="r1", metadata={"topic": "keys"})
    assert len(llm.memories(user="ana")) > 2
    add(memory, TEA)
    assert everything(memory) == [TEA, LONG]
    assert texts(memory.search("Which drawer holds the keys of house 41?", filters={"user_id": "ana"}))[0] == LONG
    created = memory.get(id)["created_at"]
    for text in ("Short.", LONG + " And more.", LONG):
        memory.update(id, text=text)
        got = memory.get(id)
        assert (got["memory"], got["created_at"], got["run_id"]) == (text, created, "r1")
    memory.update(id, metadata={"n": 1})
    assert everything(memory, n=1) == [LONG]
    assert [row["event"] for row in memory.history(id)] == ["ADD", "UPDATE", "UPDATE", "UPDATE", "UPDATE"]
    memory.delete(id)
    assert everything(memory) == [TEA]


def test_history_says_what_happened_and_no_text_that_is_gone(memory: Memory) -> None:
    id = add(memory, TEA)
    memory.update(id, text=CAR)
    rows = memory.history(id)
    assert [(row["event"], row["new_memory"], row["is_deleted"]) for row in rows] == [
        ("ADD", None, False),
        ("UPDATE", CAR, False),
    ]
    assert len({row["id"] for row in rows}) == 2
    memory.delete(id)
    rows = memory.history(id)
    assert [(row["event"], row["is_deleted"]) for row in rows] == [("ADD", False), ("UPDATE", False), ("DELETE", True)]
    assert TEA not in repr(rows)
    assert CAR not in repr(rows)
    assert memory.history(NOBODY) == []


@pytest.mark.parametrize(
    ("whose", "left"),
    [
        ({"user_id": "ana"}, {"bob"}),
        ({"user_id": "ana", "agent_id": "cook"}, {"ana", "ana/r1", "bob"}),
        ({"user_id": "ana", "run_id": "r1"}, {"ana", "ana/cook", "bob"}),
        ({"user_id": "ana", "agent_id": "cook", "run_id": "r1"}, {"ana", "ana/cook", "ana/r1", "bob"}),
        ({"user_id": "an"}, {"ana", "ana/cook", "ana/r1", "ana/cook/r1", "bob"}),
    ],
)
def test_delete_all_keeps_to_its_scope(memory: Memory, whose: dict[str, str], left: set[str]) -> None:
    add(memory, "ana")
    add(memory, "ana/cook", agent_id="cook")
    add(memory, "ana/r1", run_id="r1")
    add(memory, "ana/cook/r1", agent_id="cook", run_id="r1")
    add(memory, "bob", user_id="bob")
    memory.delete_all(**whose)
    assert {*everything(memory), *everything(memory, "bob")} == left
    memory.reset()
    assert everything(memory) == everything(memory, "bob") == []


def test_more_than_a_page(memory: Memory, llm: MemoryLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("finding.PAGE", "memory.PAGE", "memory.MOST_TURNS"):
        monkeypatch.setattr(f"agentmem.compat.mem0.{name}", 7)
    many = [{"role": "user", "content": f"Text {number}"} for number in range(40)]
    memory.add(many, user_id="ana", metadata={"n": 1})
    assert texts(memory.get_all(filters={"user_id": "ana"}, top_k=3)) == ["Text 39", "Text 38", "Text 37"]
    assert len(everything(memory, n={"gt": 0})) == 40
    assert texts(memory.search("19", filters={"user_id": "ana", "n": {"gt": 0}}))[0] == "Text 19"
    memory.delete_all(user_id="ana")
    assert len(llm.memories(user="ana")) == 0


def test_what_expires_is_gone(memory: Memory, llm: MemoryLLM) -> None:
    today = datetime.now(UTC).date()
    id = add(memory, TEA, expiration_date=today + timedelta(days=2))
    assert memory.get(id)["expiration_date"] == (today + timedelta(days=2)).isoformat()
    (kept,) = llm.memories(user="ana").list()
    assert timedelta(days=2) < kept.expires_at - datetime.now(UTC) <= timedelta(days=3)
    memory.update(id, expiration_date=None)
    assert "expiration_date" not in memory.get(id)
    assert llm.memories(user="ana").get(kept.id).expires_at is None
    memory.update(id, expiration_date="2999-12-31")
    assert llm.memories(user="ana").get(kept.id).expires_at.year == 3000
    memory.update(id, text=LONG)
    assert {m.expires_at.year for m in llm.memories(user="ana").list()} == {3000}


def test_what_metadata_says_of_whose_a_memory_is_is_passed_over(
    memory: Memory, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        id = add(memory, TEA, metadata={"user_id": "bob", "topic": "tea"})
    assert memory.get(id)["user_id"] == "ana"
    assert memory.get(id)["metadata"] == {"topic": "tea"}
    assert "metadata['user_id'] is passed over" in caplog.text


BAD: dict[str, Any] = {
    "nobody": lambda m: m.add(TEA),
    "an agent alone": lambda m: m.add(TEA, agent_id="cook"),
    "a run alone": lambda m: m.search("tea", filters={"run_id": "r1"}),
    "an agent to delete": lambda m: m.delete_all(agent_id="cook"),
    "all users": lambda m: m.get_all(filters={"user_id": "*"}),
    "blank": lambda m: m.add(TEA, user_id=" "),
    "a list for a user": lambda m: m.add(TEA, user_id=["ana"]),
    "bytes": lambda m: m.add(b"tea", user_id="ana"),
    "content as bytes": lambda m: m.add([{"role": "user", "content": b"tea"}], user_id="ana"),
    "half a list": lambda m: m.add([{"role": "user", "content": TEA}, {"role": "user"}], user_id="ana"),
    "no role": lambda m: m.add({"content": TEA}, user_id="ana"),
    "a picture": lambda m: m.add([{"role": "user", "content": [{"type": "image_url"}]}], user_id="ana"),
    "no text": lambda m: m.add("  ", user_id="ana"),
    "NUL": lambda m: m.add("a\0b", user_id="ana"),
    "metadata": lambda m: m.add(TEA, user_id="ana", metadata=["tea"]),
    "metadata that is no JSON": lambda m: m.add(TEA, user_id="ana", metadata={"x": object()}),
    "a past day": lambda m: m.add(TEA, user_id="ana", expiration_date="2020-01-01"),
    "no day": lambda m: m.add(TEA, user_id="ana", expiration_date="soon"),
    "the last day": lambda m: m.add(TEA, user_id="ana", expiration_date="9999-12-31"),
    "memory_type": lambda m: m.add(TEA, user_id="ana", memory_type="semantic"),
    "timestamp": lambda m: m.add(TEA, user_id="ana", timestamp=1),
    "operator": lambda m: m.search("tea", filters={"user_id": "ana", "n": {"between": [1, 2]}}),
    "an empty OR": lambda m: m.get_all(filters={"user_id": "ana", "OR": []}),
    "filters": lambda m: m.search("tea", filters="ana"),
    "a user outside": lambda m: m.search("tea", user_id="ana"),
    "limit": lambda m: m.search("tea", filters={"user_id": "ana"}, limit=3),
    "threshold": lambda m: m.search("tea", filters={"user_id": "ana"}, threshold=1.5),
    "top_k": lambda m: m.get_all(filters={"user_id": "ana"}, top_k=True),
    "query": lambda m: m.search("", filters={"user_id": "ana"}),
    "unknown to update": lambda m: m.update(NOBODY, text=TEA),
    "unknown to delete": lambda m: m.delete(NOBODY),
}


@pytest.mark.parametrize("call", BAD.values(), ids=BAD)
def test_what_cannot_be_used_is_refused_and_changes_nothing(memory: Memory, call: Any) -> None:
    with pytest.raises(InvalidInput):
        call(memory)
    assert everything(memory) == []


def test_a_bad_update_changes_nothing(memory: Memory) -> None:
    id = add(memory, LONG)
    broken: list[dict[str, Any]] = [{"metadata": {"x": float("nan")}}, {"metadata": {"x": "a" * 2**20}}]
    broken += [one | {"text": LONG + " More."} for one in broken]
    for bad in ({}, {"text": " "}, {"text": "a\0b"}, {"expiration_date": "soon"}, *broken):
        with pytest.raises(InvalidInput):
            memory.update(id, **bad)
    assert memory.get(id)["memory"] == LONG
    assert [row["event"] for row in memory.history(id)] == ["ADD"]


def test_an_id_that_several_users_have_is_told_apart_by_no_guess(memory: Memory, llm: MemoryLLM) -> None:
    for user in ("ana", "bob"):
        llm.memories(user=user).add(TEA, id="tea")
    for call in (memory.get, memory.delete, lambda id: memory.update(id, text=CAR)):
        with pytest.raises(InvalidInput, match="several users"):
            call("tea")
    assert everything(memory) == everything(memory, "bob") == [TEA]
    llm.memories(user="ana", agent="cook").add(CAR, id="tea")
    assert sorted(texts(memory.search("tea", filters={"user_id": "ana"}))) == [CAR, TEA]


def test_it_opens_and_closes_a_model_of_its_own(tmp_path: Path) -> None:
    here = Path.cwd()
    os.chdir(tmp_path)
    try:
        with Memory() as memory:
            id = add(memory, TEA)
    finally:
        os.chdir(here)
    with Memory.from_config({"store": tmp_path / "memory.db", "top_k": 4}) as memory:
        assert memory.get(id)["memory"] == TEA
    with pytest.raises(InvalidInput, match="vector_store"):
        Memory.from_config({"vector_store": {"provider": "qdrant"}})
