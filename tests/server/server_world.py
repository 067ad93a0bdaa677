"""A real server on a real port, in a thread of this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import uvicorn
from fastapi import FastAPI
from openai import OpenAI

from agentmem import MemoryLLM
from agentmem.server.app import make_app
from agentmem.server.run import make_server, own_names

FACTS = {"ada": "Biscuit", "bob": "Rex"}


@dataclass(frozen=True)
class Running:
    """A server that runs."""

    url: str
    app: FastAPI
    server: uvicorn.Server

    def openai(self, key: str = "none", **headers: str) -> OpenAI:
        """OpenAI's own client, which refuses answers that are not in OpenAI's form."""
        return OpenAI(
            base_url=f"{self.url}/v1",
            api_key=key,
            max_retries=0,
            default_headers=headers,
            _strict_response_validation=True,
        )

    def http(self, key: str | None = None, **headers: str) -> httpx2.Client:
        """A plain HTTP client. Header values are bytes, one per character."""
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        return httpx2.Client(base_url=self.url, headers=raw, timeout=60)


@contextmanager
def running(llm: MemoryLLM, **options: Any) -> Iterator[Running]:
    """The application at a free port of this machine."""
    app = make_app(llm, hosts=own_names("127.0.0.1", keys="keys" in options), **options)
    server = make_server(app, "127.0.0.1", 0)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started:
        assert time.monotonic() < deadline, "the server did not start in time"
        assert thread.is_alive(), "the server ended"
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield Running(f"http://127.0.0.1:{port}", app, server)
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()
