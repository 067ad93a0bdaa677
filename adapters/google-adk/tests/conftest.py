"""For all tests: no network, one thread, a store."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import no_network  # noqa: F401

os.environ.setdefault("OMP_NUM_THREADS", "1")

from agentmem import MemoryLLM


@pytest.fixture
def llm(tmp_path: Path) -> Iterator[MemoryLLM]:
    with MemoryLLM(store=tmp_path / "memory.db", window_tokens=1000) as opened:
        yield opened
