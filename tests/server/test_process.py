"""``agentmem serve`` as a process of its own: keys, signals, many users at once."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import APIConnectionError, OpenAI
from typer.testing import CliRunner

from agentmem import Scope
from agentmem.cli import app
from agentmem.store import Store


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def serving(store: Path, *options: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The process, once it answers, and its address."""
    port = free_port()
    command = [sys.executable, "-m", "agentmem", "serve", "--store", str(store), "--port", str(port), *options]
    env = {name: value for name, value in os.environ.items() if not name.startswith("AGENTMEM_")}
    with (store.parent / "log").open("wb") as log:
        process = subprocess.Popen(command, stderr=log, stdout=subprocess.PIPE, env=env)
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 60
    try:
        while True:
            assert process.poll() is None, (store.parent / "log").read_text()
            assert time.monotonic() < deadline, "it did not start in time"
            try:
                httpx2.get(f"{url}/healthz").raise_for_status()
                break
            except httpx2.TransportError:
                time.sleep(0.1)
        yield process, url
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(60)
        assert process.stdout is not None
        process.stdout.close()


def client(url: str, key: str = "none") -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, _strict_response_validation=True)


def user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def run(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "agentmem", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_keys_are_made_listed_and_asked_for(tmp_path: Path) -> None:
    keys, store = str(tmp_path / "keys.json"), tmp_path / "memory.db"
    token = run("keys", "add", "phone", "--user", "ada", "--keys", keys).stdout.strip()
    assert token.startswith("am-")
    assert run("keys", "list", "--keys", keys).stdout == "phone: ada\n"
    with serving(store, "--keys", keys) as (process, url):
        assert httpx2.get(f"{url}/v1/models").status_code == 401
        with client(url, token) as api:
            assert api.models.list().data[0].id == "bundled"
            api.chat.completions.create(model="bundled", messages=user("My dog is called Biscuit."))
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    log = (tmp_path / "log").read_text()
    assert all(json.loads(line) for line in log.splitlines() if line.startswith("{"))
    assert "Biscuit" not in log
    assert token not in log
    assert run("keys", "remove", "phone", "--keys", keys).returncode == 0
    assert run("keys", "remove", "phone", "--keys", keys).returncode == 1


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--host", "0.0.0.0"], "keys"),
        (["--keys", "absent.json"], "no file of keys"),
        (["--rate", "often"], "no rate"),
    ],
)
def test_what_is_not_safe_or_not_there_is_refused_before_a_model_is_loaded(
    tmp_path: Path, options: list[str], why: str
) -> None:
    done = CliRunner().invoke(app, ["serve", "--store", str(tmp_path / "memory.db"), *options])
    assert done.exit_code == 1
    assert why in done.stderr
    assert not (tmp_path / "memory.db").exists()


def test_told_to_stop_it_finishes_what_it_began(tmp_path: Path, babbler: Path) -> None:
    store = tmp_path / "memory.db"
    with serving(store, "--model", str(babbler)) as (process, url):
        with client(url) as api:
            stream = api.chat.completions.create(
                model=babbler.name, messages=user("Go on!"), max_tokens=300, stream=True, user="ada"
            )
            chunks = iter(stream)
            next(chunks)
            process.send_signal(signal.SIGTERM)
            rest = list(chunks)
        assert rest[-1].choices[0].finish_reason == "length"
        assert process.wait(60) == 0
    with Store.open(store) as opened:
        assert opened.scope(Scope(user="ada")).count() >= 2
        assert opened.verify().ok


def test_killed_it_has_lost_nothing_that_it_acknowledged(tmp_path: Path) -> None:
    store, told = tmp_path / "memory.db", []
    with serving(store) as (process, url):

        def tell() -> None:
            with suppress(APIConnectionError), client(url) as api:
                for number in range(1000):
                    said = f"My number is {number}."
                    api.responses.create(model="bundled", input=said, max_output_tokens=1)
                    told.append(said)

        thread = threading.Thread(target=tell)
        thread.start()
        while len(told) < 5:
            time.sleep(0.01)
        process.kill()
        thread.join(60)
    assert len(told) >= 5
    with Store.open(store) as opened:
        stored = {memory.text for memory in opened.scope(Scope(user="me")).list(limit=5000)}
        assert set(told) <= stored
        assert opened.verify().ok


def test_many_users_at_once_each_hear_their_own_secret(tmp_path: Path) -> None:
    names = ["Biscuit", "Rex", "Luna", "Milo", "Max", "Bella", "Rocky", "Daisy"]
    with serving(tmp_path / "memory.db", "--rate", "none") as (_, url):

        def live(number: int) -> tuple[str, str]:
            who = f"user{number}"
            with client(url) as api:
                ask = partial(api.chat.completions.create, model="bundled", user=who)
                ask(messages=user(f"My dog is called {names[number]}."))
                if number % 2:
                    answer = ask(messages=user("What is my dog called?")).choices[0].message.content
                else:
                    with ask(messages=user("What is my dog called?"), stream=True) as pieces:
                        answer = "".join(piece.choices[0].delta.content or "" for piece in pieces)
            return names[number], answer or ""

        with ThreadPoolExecutor(len(names)) as pool:
            heard = dict(pool.map(live, range(len(names))))
    for name, answer in heard.items():
        assert [other for other in names if other in answer] in ([name], []), heard
    assert sum(name in answer for name, answer in heard.items()) >= len(names) - 2
