"""For all tests: no network, one thread, a store and what it is compared with."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import no_network  # noqa: F401

os.environ.setdefault("OMP_NUM_THREADS", "1")

from agentmem import MemoryLLM

from langgraph_agentmem_kv import AgentMemStore


@pytest.fixture
def llm(tmp_path: Path) -> Iterator[MemoryLLM]:
    with MemoryLLM(store=tmp_path / "memory.db") as opened:
        yield opened


@pytest.fixture
def store(llm: MemoryLLM) -> AgentMemStore:
    return AgentMemStore(llm, user="ada")
