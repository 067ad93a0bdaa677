"""``/v1/memories`` over HTTP: every call, its neighbours' memories out of reach, and bad input."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from server_world import Running

from agentmem import MemoryLLM

TEXTS = ["My dog is called Biscuit.", "I live in Oslo.", "I had soup today.", "My train left at nine."]


@pytest.fixture
def http(server: Running, request: pytest.FixtureRequest) -> Iterator[httpx2.Client]:
    """A client of a user of its own for each test."""
    with server.http(**{"X-Agentmem-User": request.node.name[:200]}) as http:
        yield http


def add(http: httpx2.Client, text: str, **more: Any) -> dict[str, Any]:
    answer = http.post("/v1/memories", json={"text": text, **more})
    assert answer.status_code == 201, answer.text
    (memory,) = answer.json()["data"]
    return dict(memory)


def test_a_memory_from_its_first_to_its_last_day(http: httpx2.Client) -> None:
    memory = add(http, TEXTS[0], tags=["pet"], meta={"a": [1]}, session="monday")
    url = f"/v1/memories/{memory['id']}"
    assert http.get(url).json()["text"] == TEXTS[0]
    assert http.get(url).json()["scope"]["session"] == "monday"
    assert http.put(f"{url}/pin", json={}).json()["pinned"] is True
    assert http.put(f"{url}/pin", json={"pinned": False}).json()["pinned"] is False
    changed = http.patch(url, json={"text": "My dog is called Rex.", "tags": []}).json()
    assert (changed["text"], changed["tags"], changed["meta"]) == ("My dog is called Rex.", [], {"a": [1]})
    assert http.delete(url).json()["ids"] == [memory["id"]]
    assert http.get(url).status_code == 404
    history = [event["action"] for event in http.get(f"{url}/history").json()["data"]]
    assert [what for what in history if what != "kv_attached"] == ["added", "pinned", "unpinned", "updated", "deleted"]


def test_search_explains_itself(http: httpx2.Client) -> None:
    for text in TEXTS:
        add(http, text)
    found = http.post("/v1/memories/search", json={"query": "what is my dog called?", "top_k": 2, "explain": True})
    hits = found.json()["data"]
    assert hits[0]["memory"]["text"] == TEXTS[0]
    assert len(hits) == 2
    assert hits[0]["score"] == pytest.approx(hits[0]["explain"]["lexical_z"] + hits[0]["explain"]["dense_z"])
    assert http.post("/v1/memories/search", json={"query": "dog", "threshold": 1e6}).json()["data"] == []


@pytest.mark.parametrize("sort", ["created_at", "-created_at", "-uses", "frequency", "-n_tokens", "kv_bytes"])
def test_pages_hold_everything_once_and_in_order(http: httpx2.Client, llm: MemoryLLM, sort: str) -> None:
    written = [add(http, f"{text} {i}")["id"] for i in range(3) for text in TEXTS]
    http.post("/v1/memories", json={"text": "A long story, told at length. " * 60}).raise_for_status()
    assert llm.flush(60)  # sizes of KV, which one order goes by, no longer change
    whole = http.get("/v1/memories", params={"sort": sort, "limit": 500}).json()
    assert whole["next_cursor"] is None
    pages, cursor = [], None
    while True:
        answer = http.get("/v1/memories", params={"sort": sort, "limit": 4, **({"cursor": cursor} if cursor else {})})
        page, cursor = answer.json()["data"], answer.json()["next_cursor"]
        pages += page
        if cursor is None:
            break
        assert len(page) == 4
    key = sort.removeprefix("-")
    values = [memory[key] for memory in pages]
    assert values == sorted(values, reverse=sort.startswith("-"))
    assert {memory["id"] for memory in pages} == {memory["id"] for memory in whole["data"]} >= set(written)
    assert len(pages) == len(whole["data"])


def test_writing_and_deleting_meanwhile_repeat_and_hide_nothing(http: httpx2.Client) -> None:
    ids = [add(http, f"{text} {i}")["id"] for i in range(2) for text in TEXTS]
    first = http.get("/v1/memories", params={"limit": 3}).json()
    assert [memory["id"] for memory in first["data"]] == ids[:-4:-1]
    add(http, "Something new.")
    http.delete(f"/v1/memories/{ids[-3]}")  # the last one that was shown
    second = http.get("/v1/memories", params={"limit": 500, "cursor": first["next_cursor"]}).json()
    assert [memory["id"] for memory in second["data"]] == ids[-4::-1]


def test_the_user_may_stand_in_the_address(server: Running) -> None:
    with server.http() as http:
        http.post("/v1/memories?user=addressed", json={"text": TEXTS[0]}).raise_for_status()
        data = http.get("/v1/memories", params={"user": "addressed", "sort": "created_at"}).json()["data"]
        assert [memory["text"] for memory in data] == TEXTS[:1]
        assert http.get("/v1/memories", params={"user": "somebody"}).json()["data"] == []
        assert http.get(f"/v1/memories/{data[0]['id']}", params={"user": "addressed"}).status_code == 200


def test_filters(http: httpx2.Client) -> None:
    add(http, TEXTS[0], tags=["pet", "home"], session="a")
    add(http, TEXTS[1], tags=["home"], session="b", role="assistant")
    middle = http.get("/v1/memories").json()["data"][0]["created_at"]

    def shown(**params: Any) -> list[str]:
        data = http.get("/v1/memories", params={"sort": "created_at", **params}).json()["data"]
        return [memory["text"] for memory in data]

    assert shown(tags=["home"]) == TEXTS[:2]
    assert shown(tags=["home", "pet"]) == TEXTS[:1]
    assert shown(role="assistant") == shown(session="b") == shown(since=middle) == TEXTS[1:2]
    assert shown(until=middle) == TEXTS[:1]
    assert shown(pinned="true") == shown(min_uses=1) == []
    assert len(shown(tier="warm") + shown(tier="cold")) == 2


def test_prune_is_a_rehearsal_unless_told(http: httpx2.Client) -> None:
    for text in TEXTS:
        add(http, text)
    would = http.post("/v1/memories/prune", json={"max_memories": 2}).json()
    assert would["dry_run"] is True
    assert len(would["pruned"]) == 2
    assert all(one["reason"] for one in would["pruned"])
    assert len(http.get("/v1/memories").json()["data"]) == 4
    done = http.post("/v1/memories/prune", json={"max_memories": 2, "dry_run": False}).json()
    assert {one["id"] for one in done["pruned"]} == {one["id"] for one in would["pruned"]}
    assert len(http.get("/v1/memories").json()["data"]) == 2


def test_a_rehearsal_names_as_many_as_are_wanted(http: httpx2.Client) -> None:
    for text in TEXTS:
        add(http, text)
    would = http.post("/v1/memories/prune", json={"max_memories": 1, "listed": 2}).json()
    assert (len(would["pruned"]), would["total"], would["kept"]) == (2, 3, 1)
    assert http.post("/v1/memories/prune", json={"max_memories": 1, "listed": 0}).json()["pruned"] == []
    assert http.post("/v1/memories/prune", json={"max_memories": 1, "listed": -1}).status_code == 400


def test_counting_follows_the_filters(http: httpx2.Client) -> None:
    for text in TEXTS:
        add(http, text, tags=["four"])
    add(http, "Okay.", role="assistant")

    def counted(**params: Any) -> int:
        return int(http.get("/v1/memories/count", params=params).json()["memories"])

    assert counted() == 5
    assert counted(role="assistant") == 1
    assert counted(tags=["four"]) == 4
    assert counted(min_uses=1) == 0
    assert http.get("/v1/memories/count", params={"sort": "uses"}).status_code == 400
    assert http.get("/v1/memories/count", params={"since": "yesterday"}).status_code == 400


def test_activity_tells_what_came_and_went(http: httpx2.Client) -> None:
    ids = [add(http, text)["id"] for text in TEXTS]
    http.delete(f"/v1/memories/{ids[0]}")
    http.post("/v1/memories/prune", json={"max_memories": 1, "dry_run": False}).raise_for_status()
    told = http.get("/v1/memories/activity").json()
    assert told["period_seconds"] == 60
    for name, count in (("added", 4), ("deleted", 1), ("evicted", 2)):
        assert sum(period[name] for period in told["periods"]) == count
    assert told["periods"][-1]["memories"] == http.get("/v1/memories/stats").json()["memories"] == 1
    assert told["uses"] == [{"least": 0, "most": 0, "memories": 1}]
    with_nothing = http.get("/v1/memories/activity", headers={"X-Agentmem-User": "nobody"}).json()
    assert with_nothing["periods"] == with_nothing["uses"] == []


def test_what_is_kept_for_a_while_only(http: httpx2.Client) -> None:
    memory = add(http, TEXTS[0], ttl="12h")
    assert memory["expires_at"] > memory["created_at"]
    url = f"/v1/memories/{memory['id']}/expiry"
    assert http.put(url, json={"ttl": None}).json()["expires_at"] is None
    assert http.put(url, json={"ttl": "8w"}).json()["expires_at"] > memory["expires_at"]
    assert http.put("/v1/memories/none/expiry", json={"ttl": "8w"}).status_code == 404
    assert http.post("/v1/memories", json={"text": "x", "ttl": "soon"}).status_code == 400
    for ttl in ("0h", "999999w", 3):
        assert http.put(url, json={"ttl": ttl}).status_code == 400


def test_several_are_forgotten_or_none(http: httpx2.Client) -> None:
    ids = [add(http, text)["id"] for text in TEXTS]
    assert http.post("/v1/memories/delete", json={"ids": [*ids[:2], "absent"]}).status_code == 404
    assert http.get("/v1/memories/stats").json()["memories"] == 4
    assert http.post("/v1/memories/delete", json={"ids": ids[:2]}).json()["ids"] == ids[:2]
    assert http.get("/v1/memories/stats").json()["memories"] == 2


def test_an_export_comes_back_elsewhere(http: httpx2.Client, server: Running) -> None:
    for text in TEXTS:
        add(http, text, tags=["kept"])
    exported = http.get("/v1/memories/export")
    assert "attachment" in exported.headers["content-disposition"]
    headers = {"Content-Type": "application/jsonl", "X-Agentmem-User": "elsewhere"}
    answer = http.post("/v1/memories/import", content=exported.content, headers=headers)
    assert answer.json() == {"imported": 4}
    assert http.post("/v1/memories/import", content=exported.content, headers=headers).json() == {"imported": 0}
    with server.http(**{"X-Agentmem-User": "elsewhere"}) as other:
        assert [m["text"] for m in other.get("/v1/memories?sort=created_at").json()["data"]] == TEXTS
        for bad in (b"", b"{}", exported.content[:-20], b"\xff", b"x" * 1000):
            answer = other.post("/v1/memories/import", content=bad, headers=headers)
            assert answer.status_code == 400
            assert "tmp" not in answer.text
        assert other.post("/v1/memories/import", json={}).status_code == 415


def test_nobody_reaches_the_memories_of_others(locked: Running, keys: tuple[Path, dict[str, str]]) -> None:
    tokens = keys[1]
    with locked.http(tokens["ada"]) as ada, locked.http(tokens["bob"]) as bob:
        memory = add(ada, TEXTS[0])
        cursor = ada.get("/v1/memories", params={"limit": 1}).json()["next_cursor"]
        for _ in range(2):
            add(ada, TEXTS[1])
        cursor = ada.get("/v1/memories", params={"limit": 1}).json()["next_cursor"]
        assert bob.get("/v1/memories", params={"cursor": cursor}).json()["data"] == []
        assert bob.get("/v1/memories/stats").json()["memories"] == bob.get("/v1/memories/stats").json()["file_bytes"]
        assert bob.post("/v1/memories/search", json={"query": "dog"}).json()["data"] == []
        assert TEXTS[0] not in bob.get("/v1/memories/export").text
        absent = bob.get("/v1/memories/none")
        url = f"/v1/memories/{memory['id']}"
        for answer in (bob.get(url), bob.delete(url), bob.patch(url, json={"text": "x"}), bob.get(f"{url}/history")):
            assert answer.status_code == 404
            assert answer.json()["error"]["message"].replace(memory["id"], "none").startswith("no memory 'none'")
        assert absent.status_code == 404
        for params in ({"user": "ada"}, {"user": "*"}):
            assert bob.get("/v1/memories", params=params).status_code == 403
        assert ada.get(url).json()["text"] == TEXTS[0]


@pytest.mark.parametrize(
    "params",
    [
        {"limit": 0},
        {"limit": 501},
        {"limit": "x"},
        {"sort": "text; drop table memory"},
        {"cursor": "x"},
        {"cursor": "\u00e9"},
        {"cursor": base64.urlsafe_b64encode(b'["-created_at", 1, "x", 1, 1, "a"]').decode()},
        {"cursor": base64.urlsafe_b64encode(b'["-created_at", 1, NaN, 1, 1, "a"]').decode()},
        {"cursor": base64.urlsafe_b64encode(b'["-created_at", 1, 1e400, 1, 1, "a"]').decode()},
        {"cursor": base64.urlsafe_b64encode(b'["-uses", 1, 1, 1, 1, "a"]').decode()},
        {"cursor": base64.urlsafe_b64encode(json.dumps(["-created_at", 10**30, 1, 1, 1, "a"]).encode()).decode()},
        {"since": "2026-01-01T00:00:00"},
        {"since": "yesterday"},
        {"tags": ""},
        {"tags": "a\x00b"},
        {"role": "wizard"},
        {"tier": "hot"},
        {"min_uses": -1},
        {"color": "red"},
        {"session": "a\u200bb"},
    ],
)
def test_bad_lists_are_refused(http: httpx2.Client, params: dict[str, Any]) -> None:
    add(http, TEXTS[0])
    answer = http.get("/v1/memories", params=params)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("", {}),
        ("", {"text": " "}),
        ("", {"text": "a\x00"}),
        ("", {"text": "x", "role": "wizard"}),
        ("", {"text": "x", "tags": "one"}),
        ("", {"text": "x", "meta": []}),
        ("", {"text": "x", "color": "red"}),
        ("/search", {"query": ""}),
        ("/search", {"query": "x", "top_k": 10**9}),
        ("/delete", {"ids": []}),
        ("/prune", {"unused_for": "soon"}),
        ("/prune", {"max_bytes": 2**80}),
    ],
)
def test_bad_bodies_are_refused(http: httpx2.Client, path: str, body: dict[str, Any]) -> None:
    answer = http.post(f"/v1/memories{path}", json=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"]


def test_listing_waits_for_no_answer(server: Running, llm: MemoryLLM) -> None:
    """What needs the store only goes past the queue: here the model is held by somebody else."""
    with llm.model.lock, server.http(**{"X-Agentmem-User": "past-the-queue"}) as http:
        assert http.get("/v1/memories", timeout=5).status_code == 200
        assert http.get("/healthz", timeout=5).status_code == 200
