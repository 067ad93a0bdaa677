"""Who may come in, and how far: keys, scopes, addresses, rates."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import openai
import pytest
from server_world import Running, running

from agentmem import InvalidInput, MemoryLLM
from agentmem.server.keys import Grant, KeyFile, add_key, read_keys, remove_key
from agentmem.server.limits import Limits
from agentmem.server.run import check_address, is_loopback

Keys = tuple[Path, dict[str, str]]


def say(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "bundled", "messages": [{"role": "user", "content": text}], **more}


def test_only_hashes_are_kept_and_only_the_owner_reads_them(keys: Keys) -> None:
    path, tokens = keys
    text = path.read_text(encoding="utf-8")
    assert not any(token in text or token[3:] in text for token in tokens.values())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert {key.name for key in read_keys(path)} == set(tokens)


@pytest.mark.parametrize("key", [None, "am-", "am-wrong", "x" * 10_000, "\u00e4".encode().decode("latin-1")])
def test_without_a_good_key_nobody_comes_in(locked: Running, key: str | None) -> None:
    with locked.http(key) as http:
        for path in ("/v1/models", "/metrics"):
            answer = http.get(path)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.json()["error"]["type"] == "authentication_error"
        assert http.post("/v1/chat/completions", json=say("Hello!")).status_code == 401
        assert http.get("/healthz").json() == {"status": "ok"}


def test_a_key_reads_and_writes_its_own_scope_only(locked: Running, keys: Keys) -> None:
    _, tokens = keys
    ada, bob = locked.openai(tokens["ada"]), locked.openai(tokens["bob"])
    ada.chat.completions.create(**say("My dog is called Biscuit."))
    reply = bob.chat.completions.create(**say("What is my dog called?"))
    assert "Biscuit" not in reply.choices[0].message.content
    assert reply.model_extra["agentmem"]["user"] == "bob"
    assert reply.model_extra["agentmem"]["memories"] == []
    reply = ada.chat.completions.create(**say("What is my dog called?"))
    assert reply.choices[0].message.content == "Your dog is called Biscuit."
    for foreign in (
        lambda: bob.chat.completions.create(**say("What is my dog called?", user="ada")),
        lambda: locked.openai(tokens["bob"], **{"X-Agentmem-User": "ada"}).chat.completions.create(**say("Hello!")),
        lambda: locked.openai(tokens["bob"], **{"X-Agentmem-Agent": "other"}).chat.completions.create(**say("Hello!")),
        lambda: bob.embeddings.create(model="bundled", input="x", user="nobody", encoding_format="float"),
    ):
        with pytest.raises(openai.PermissionDeniedError) as caught:
            foreign()
        # Word for word the same, whether there is such a user or not.
        assert caught.value.response.json()["error"]["message"] == "this key does not reach these memories"


def test_a_key_of_many_users_names_one(locked: Running, keys: Keys) -> None:
    _, tokens = keys
    app = locked.openai(tokens["app"])
    with pytest.raises(openai.BadRequestError, match="name one"):
        app.chat.completions.create(**say("Hello!"))
    assert app.chat.completions.create(**say("Hello!", user="ada")).model_extra["agentmem"]["user"] == "ada"
    with locked.http(tokens["app"], **{"X-Agentmem-User": "zoë".encode().decode("latin-1")}) as http:
        answer = http.post("/v1/chat/completions", json=say("Hello!", user="ada"))
        assert answer.json()["agentmem"]["user"] == "zoë"  # the header counts
    with locked.http(tokens["app"]) as http:
        assert http.get("/metrics").status_code == 403  # figures of all agents
    with locked.http(tokens["all"]) as http:
        assert "agentmem_requests_total" in http.get("/metrics").text


def test_headers_that_are_no_names_are_refused(locked: Running, keys: Keys) -> None:
    for value in ("\xff", "a\u200bb".encode().decode("latin-1"), "a" * 300):
        with locked.http(keys[1]["app"], **{"X-Agentmem-User": value}) as http:
            assert http.post("/v1/chat/completions", json=say("Hello!")).status_code == 400
    headers = [("Authorization", f"Bearer {keys[1]['app']}"), ("X-Agentmem-User", "a"), ("X-Agentmem-User", "b")]
    with locked.http() as http:
        assert http.post("/v1/chat/completions", json=say("Hello!"), headers=headers).status_code == 400


def test_a_removed_key_is_refused_at_once(llm: MemoryLLM, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    token = add_key(path, "one", [Grant(user="ada")])
    with running(llm, keys=KeyFile(path)) as server, server.http(token) as http:
        assert http.get("/v1/models").status_code == 200
        other = add_key(path, "two", [Grant(user="ada")])
        remove_key(path, "one")
        assert http.get("/v1/models").status_code == 401
        assert http.get("/v1/models", headers={"Authorization": f"Bearer {other}"}).status_code == 200


def test_files_and_names_that_cannot_be_used(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    add_key(path, "one", [Grant(user="ada")])
    with pytest.raises(InvalidInput, match="already"):
        add_key(path, "one", [Grant(user="ada")])
    for name in ("", "a b", "a\nb"):
        with pytest.raises(InvalidInput):
            add_key(path, name, [Grant(user="ada")])
    with pytest.raises(InvalidInput, match="no key 'two'"):
        remove_key(path, "two")
    for content in ("", "{}", "[1]", json.dumps({"keys": [{"name": "x", "sha256": "0", "grants": []}]})):
        path.write_text(content, encoding="utf-8")
        with pytest.raises(InvalidInput, match="not a file of keys"):
            read_keys(path)


def test_other_machines_are_let_in_with_keys_only() -> None:
    assert [is_loopback(h) for h in ("localhost", "127.0.0.1", "127.8.8.8", "::1")] == [True] * 4
    for host in ("0.0.0.0", "::", "192.168.1.2", "example.com", ""):
        assert not is_loopback(host)
        check_address(host, keys=True)
        with pytest.raises(InvalidInput, match="keys"):
            check_address(host, keys=False)


def test_a_page_in_a_browser_reaches_nothing(server: Running) -> None:
    with server.http() as http:
        # DNS rebinding: a name of the attacker's that leads to this machine.
        refused = http.get("/v1/models", headers={"Host": "attacker.example"})
        assert refused.status_code == 400
        assert refused.json()["error"]["code"] == "unknown_host"
        for name in ("localhost:8000", "127.0.0.1", "[::1]:8000", "LOCALHOST"):
            assert http.get("/v1/models", headers={"Host": name}).status_code == 200
        # A form or a beacon: no JSON, no preflight.
        body = json.dumps(say("Hello!"))
        for kind in ("text/plain", "application/x-www-form-urlencoded"):
            answer = http.post("/v1/chat/completions", content=body, headers={"Content-Type": kind})
            assert answer.status_code == 400
        preflight = {"Origin": "https://attacker.example", "Access-Control-Request-Method": "POST"}
        answer = http.options("/v1/chat/completions", headers=preflight)
        assert answer.status_code == 405
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_with_keys_a_proxy_may_use_its_own_name(locked: Running, keys: Keys) -> None:
    with locked.http(keys[1]["ada"]) as http:
        assert http.get("/v1/models", headers={"Host": "memory.example"}).status_code == 200


def test_too_many_requests_wait(llm: MemoryLLM, keys: Keys) -> None:
    _, tokens = keys
    with running(llm, keys=KeyFile(keys[0]), limits=Limits(rate="3/minute")) as server:
        with server.http(tokens["ada"]) as http:
            assert [http.get("/v1/models").status_code for _ in range(5)] == [200, 200, 200, 429, 429]
            answer = http.get("/v1/models")
            assert answer.json()["error"]["code"] == "rate_limit_exceeded"
            assert int(answer.headers["retry-after"]) > 0
        with server.http(tokens["bob"]) as http:
            assert http.get("/v1/models").status_code == 200
        with server.http("am-guess") as http:
            assert [http.get("/v1/models").status_code for _ in range(4)] == [401, 401, 401, 429]
    with pytest.raises(InvalidInput, match="no rate"):
        _ = Limits(rate="often").rate_item


def test_errors_tell_nothing_of_the_machine(server: Running) -> None:
    with server.http() as http:
        for answer in (
            http.post("/v1/chat/completions", content=b"{", headers={"Content-Type": "application/json"}),
            http.post("/v1/chat/completions", json=[]),
            http.get("/v1/nothing"),
            http.put("/v1/models"),
            http.get("/v1/models/..%2f..%2fetc%2fpasswd"),
        ):
            assert 400 <= answer.status_code < 500
            error = answer.json()["error"]
            assert set(error) == {"message", "type", "param", "code"}
            assert "/" not in error["message"].replace("..", "").replace("../", "") or "passwd" in error["message"]
            assert "Traceback" not in answer.text
