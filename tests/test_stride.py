"""Law 7: recall has a stride. A model that never stops talking shows how often it is asked what matters now."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentmem import MemoryLLM
from agentmem.store import ScopedMemories
from tests.model import tiny_models

STRIDE = 64


@pytest.fixture
def endless(tmp_path: Path) -> Iterator[MemoryLLM]:
    """A tiny random model, which babbles to its limit."""
    folder = tmp_path / "model"
    tiny_models.build("llama").save_pretrained(folder)
    tiny_models.tokenizer().save_pretrained(folder)
    with MemoryLLM(folder, store=tmp_path / "memory.db", threshold=None, top_k=2) as llm:
        llm.model.chat.stop_ids = frozenset()
        yield llm


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The queries that recall looked up."""
    queries: list[str] = []
    search = ScopedMemories.search

    def counted(self: ScopedMemories, text: str, *args: Any, **kwargs: Any) -> Any:
        queries.append(text)
        return search(self, text, *args, **kwargs)

    monkeypatch.setattr(ScopedMemories, "search", counted)
    return queries


def test_recall_runs_once_a_stride_and_not_for_every_token(endless: MemoryLLM, searches: list[str]) -> None:
    ada = endless.conversation(user="ada")
    for text in ("The boat is blue.", "The house is old.", "The road is long.", "The night is cold."):
        ada.memories.add(text)
    reply = ada.chat("Tell me about the boat.", max_new_tokens=3 * STRIDE)
    assert reply.usage.completion_tokens == 3 * STRIDE
    assert len(searches) == 3  # before the first token, after 64 and after 128
    assert len(set(searches)) == len(searches)  # each also asks for what was said meanwhile


def test_every_memory_that_was_read_meanwhile_is_reported(endless: MemoryLLM) -> None:
    ada = endless.conversation(user="ada")
    for text in ("The boat is blue.", "The house is old.", "The road is long.", "The night is cold."):
        ada.memories.add(text)
    reply = ada.chat("Tell me about the boat.", max_new_tokens=3 * STRIDE)
    assert len(reply.memories) >= 2
    assert all(0 <= read.attention < 1 for read in reply.memories)
    assert 0 < sum(read.attention for read in reply.memories) < 1
