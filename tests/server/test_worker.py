"""The queue before the model, and what becomes of clients that are slow, greedy or gone."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest
from server_world import Running, running

from agentmem import MemoryLLM, Scope
from agentmem.server.failures import Failure
from agentmem.server.limits import Limits
from agentmem.server.worker import Worker


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker(per_caller=8, in_all=12)
    yield worker
    worker.close()


def test_callers_are_served_in_turn(worker: Worker) -> None:
    held, order = threading.Event(), []
    first = worker.submit("x", held.wait)
    jobs = [worker.submit("greedy", lambda i=i: order.append(f"greedy {i}")) for i in range(5)]
    jobs += [worker.submit(name, lambda name=name: order.append(name)) for name in ("ada", "bob")]
    held.set()
    for job in [first, *jobs]:
        job.result(10)
    assert order == ["greedy 0", "ada", "bob", "greedy 1", "greedy 2", "greedy 3", "greedy 4"]


def test_too_many_jobs_are_refused_and_cancelled_ones_do_not_count(worker: Worker) -> None:
    held = threading.Event()
    first = worker.submit("x", held.wait)
    while worker.waiting:
        time.sleep(0.001)
    jobs = [worker.submit("greedy", lambda: None) for _ in range(8)]
    with pytest.raises(Failure) as caught:
        worker.submit("greedy", lambda: None)
    assert (caught.value.status, caught.value.retry_after) == (503, 5)
    jobs[0].cancel()
    worker.submit("greedy", lambda: None)
    for name in "abc":
        worker.submit(name, lambda: None)
    with pytest.raises(Failure):
        worker.submit("d", lambda: None)
    held.set()
    first.result(10)


def test_what_was_accepted_is_done_before_the_end() -> None:
    worker = Worker(per_caller=8, in_all=8)
    jobs = [worker.submit("a", lambda: time.sleep(0.02)) for _ in range(3)]
    failing = worker.submit("a", lambda: 1 / 0)
    worker.close()
    assert all(job.done() for job in jobs)
    with pytest.raises(ZeroDivisionError):
        failing.result()
    with pytest.raises(Failure, match="shutting down"):
        worker.submit("a", lambda: None)


# ------------------------------------------------------------------------------------------------------------- clients


@pytest.fixture(scope="module")
def talker(babbler: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MemoryLLM]:
    """A model that does not stop by itself."""
    store = tmp_path_factory.mktemp("talker") / "memory.db"
    with MemoryLLM(babbler, store=store, top_k=0, max_new_tokens=20_000) as llm:
        yield llm


@pytest.fixture(scope="module")
def endless(talker: MemoryLLM) -> Iterator[Running]:
    with running(talker, limits=Limits(body_seconds=1.0, max_body=100_000)) as server:
        yield server


def ask(llm: MemoryLLM, **more: Any) -> dict[str, Any]:
    return {"model": llm.name, "messages": [{"role": "user", "content": "Go on!"}], **more}


def metric(server: Running, line: str) -> float:
    with server.http() as http:
        found = [row for row in http.get("/metrics").text.splitlines() if row.startswith(line + " ")]
    return float(found[0].rpartition(" ")[2]) if found else 0.0


def wait_for(server: Running, line: str, value: float) -> None:
    deadline = time.monotonic() + 20
    while metric(server, line) < value:
        assert time.monotonic() < deadline, f"{line} did not reach {value}"
        time.sleep(0.05)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_stops_its_reply(endless: Running, talker: MemoryLLM, stream: bool) -> None:
    line = 'agentmem_replies_total{finish="cancelled"}'
    before, who = metric(endless, line), f"gone{stream}"
    with endless.http() as http:
        if stream:
            with http.stream("POST", "/v1/chat/completions", json=ask(talker, stream=True, user=who)) as response:
                next(response.iter_lines())
        else:
            with pytest.raises(httpx2.ReadTimeout):
                http.post("/v1/chat/completions", json=ask(talker, user=who), timeout=0.5)
    wait_for(endless, line, before + 1)
    stored = talker.store.scope(Scope(user=who)).list(sort="created_at")
    assert stored[0].text == "Go on!"  # what was said until then is remembered


def test_a_waiting_request_of_a_client_that_went_away_is_never_begun(talker: MemoryLLM) -> None:
    with running(talker, limits=Limits(at_once=1)) as server:
        with (
            server.http() as http,
            http.stream("POST", "/v1/chat/completions", json=ask(talker, stream=True, user="first")) as response,
        ):
            lines = response.iter_lines()  # whoever drops it hangs up
            next(lines)
            with server.http() as other, pytest.raises(httpx2.ReadTimeout):
                other.post("/v1/chat/completions", json=ask(talker, user="second"), timeout=0.3)
        with server.http() as http:  # behind both in the queue
            http.post("/v1/chat/completions", json=ask(talker, max_tokens=2, user="third")).raise_for_status()
    assert talker.store.scope(Scope(user="second")).count() == 0


def test_what_is_short_does_not_wait_for_answers_that_are_being_written(talker: MemoryLLM) -> None:
    with (
        running(talker, limits=Limits(at_once=1)) as server,
        server.http() as http,
        http.stream("POST", "/v1/chat/completions", json=ask(talker, stream=True, user="long")) as response,
    ):
        lines = response.iter_lines()
        next(lines)
        with server.http("none", **{"X-Agentmem-User": "short"}) as other:
            other.post("/v1/memories", json={"text": "My dog is called Biscuit."}).raise_for_status()
            found = other.post("/v1/memories/search", json={"query": "dog"}).json()["data"]
            other.post("/v1/embeddings", json={"model": talker.name, "input": "dog"}).raise_for_status()
        assert [hit["memory"]["text"] for hit in found] == ["My dog is called Biscuit."]
        assert metric(server, 'agentmem_replies_total{finish="length"}') == 0  # it is still being written
        assert any("delta" in line for line in lines)


def test_answers_to_several_users_are_written_at_the_same_time(talker: MemoryLLM) -> None:
    """Each has its first word long before another one's last."""
    with running(talker, limits=Limits(at_once=4)) as server, ExitStack() as open_ones:
        for number in range(4):
            http = open_ones.enter_context(server.http())
            body = ask(talker, stream=True, user=f"at once {number}")
            response = open_ones.enter_context(http.stream("POST", "/v1/chat/completions", json=body))
            lines = response.iter_lines()
            open_ones.callback(lines.close)
            assert any('"content":" the"' in line for line in lines)
        assert metric(server, 'agentmem_replies_total{finish="length"}') == 0


def test_a_body_that_trickles_in_is_given_up(endless: Running) -> None:
    host, port = endless.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{")
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert b" 408 " in answer.splitlines()[0]
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "request_timeout"


@pytest.mark.parametrize("chunked", [True, False])
def test_a_body_that_is_too_long_is_refused(endless: Running, chunked: bool) -> None:
    body = json.dumps({"model": "x", "input": "x" * 200_000}).encode()
    content = (body[at : at + 50_000] for at in range(0, len(body), 50_000)) if chunked else body
    with endless.http() as http:
        answer = http.post("/v1/embeddings", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "body_too_large"


def test_a_client_that_sends_no_headers_is_closed(endless: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentmem.server.run.HEADER_SECONDS", 0.3)
    host, port = endless.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: loc")
        assert connection.recv(100) == b""


def test_logs_say_what_happened_and_nothing_that_was_said(
    endless: Running, talker: MemoryLLM, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO), endless.http() as http:
        answer = http.post("/v1/chat/completions", json=ask(talker, max_tokens=3, user="Secretname"))
        http.post("/v1/chat/completions?q=Secretquery", json=ask(talker, n="Secretvalue"))
        http.get("/v1/models/Secretpath")
        wait_for(endless, 'agentmem_requests_total{method="GET",route="/v1/models/{id:path}",status="404"}', 1)
    lines = [record.seen for record in caplog.records if record.name == "agentmem.access"]
    assert [line["status"] for line in lines][:3] == [200, 400, 404]
    assert lines[0]["route"] == "/v1/chat/completions"
    assert lines[0]["request"] == answer.headers["x-request-id"]
    ours = [record for record in caplog.records if not record.name.startswith("httpx")]
    everything = " ".join(record.getMessage() + json.dumps(getattr(record, "seen", {})) for record in ours)
    assert "Secret" not in everything
    assert "Go on" not in everything
