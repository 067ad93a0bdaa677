from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from server_world import Running, running

from agentmem import MemoryLLM
from agentmem.server.keys import Grant, KeyFile, add_key


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MemoryLLM]:
    with MemoryLLM(store=tmp_path_factory.mktemp("server") / "memory.db", max_new_tokens=24) as llm:
        yield llm


@pytest.fixture(scope="module")
def server(llm: MemoryLLM) -> Iterator[Running]:
    """A server without keys on a port of this machine."""
    with running(llm) as server:
        yield server


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A file of keys, and the keys themselves by name."""
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    grants = {
        "ada": [Grant(user="ada")],
        "bob": [Grant(user="bob")],
        "app": [Grant(user="*")],
        "all": [Grant(user="*", agent="*")],
    }
    return path, {name: add_key(path, name, some) for name, some in grants.items()}


@pytest.fixture(scope="module")
def locked(llm: MemoryLLM, keys: tuple[Path, dict[str, str]]) -> Iterator[Running]:
    """A server with keys, over the same store."""
    with running(llm, keys=KeyFile(keys[0])) as server:
        yield server
