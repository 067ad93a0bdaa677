"""For all tests: no network, one thread, a store."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import no_network  # noqa: F401

os.environ.setdefault("OMP_NUM_THREADS", "1")

from haystack_integrations.memory_stores.agentmem_kv import AgentMemMemoryStore


@pytest.fixture
def memory_store(tmp_path: Path) -> Iterator[AgentMemMemoryStore]:
    store = AgentMemMemoryStore(str(tmp_path / "memory.db"), options={"window_tokens": 900})
    yield store
    store.close()
