"""A long history in a store, written without generation: real text, embeddings and indexes.

KV is encoded only for what the benchmark's questions recall (and is read back from disk); a memory that nobody reads
costs a turn nothing but its place in the index, with or without KV.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agentmem.llm import MemoryLLM
from agentmem.records import Role, Scope
from agentmem.store import NewMemory
from agentmem.training.facts import draw_relations, tell
from agentmem.training.smalltalk import PAIRS
from benchmarks.shapes import Shape, random_words

CHUNK_TOKENS = 96
"""Tokens of one memory: eight of them and a question fit into the bundled model's context as text."""
USER = "historian"
ADD = 512
"""Memories per transaction while filling."""
SPARE = 2
"""KV is encoded for this many times the memories that one turn reads: what turns add may shift the ranks."""


@dataclass(frozen=True)
class History:
    """Chunks of text with their length in tokens, and questions about some of them."""

    texts: list[str]
    lengths: list[int]
    questions: list[str]

    def cut(self, tokens: int) -> int:
        """How many chunks from the start have at least ``tokens`` tokens together."""
        total = 0
        for number, length in enumerate(self.lengths, 1):
            total += length
            if total >= tokens:
                return number
        raise ValueError(f"the history has {total} tokens, not {tokens}")


def draw(llm: MemoryLLM, shape: Shape, tokens: int, questions: int, seed: int) -> History:
    """A history of at least ``tokens`` tokens, and ``questions`` questions about its first chunks."""
    rng = random.Random(f"history {seed}")
    texts: list[str] = []
    lengths: list[int] = []
    asked: list[str] = []
    total = 0
    while total < tokens or len(asked) < questions:
        text, question = _sentences(rng, llm) if shape is Shape.BUNDLED else _words(rng, shape)
        texts.append(text)
        lengths.append(len(llm.model.chat.encode(text)))
        total += lengths[-1]
        if len(asked) < questions:
            asked.append(question)
    return History(texts, lengths, asked)


def _words(rng: random.Random, shape: Shape) -> tuple[str, str]:
    text = random_words(rng, CHUNK_TOKENS, shape)
    return text, " ".join(rng.sample(text.split(), 12))


def _sentences(rng: random.Random, llm: MemoryLLM) -> tuple[str, str]:
    """Facts and small talk up to the length of a chunk, and a question about the first fact."""
    facts = tell(rng, draw_relations(rng, 8))
    text = facts[0].told(rng)
    for fact in facts[1:]:
        longer = f"{text} {rng.choice(PAIRS)[0]} {fact.told(rng)}"
        if len(llm.model.chat.encode(longer)) > CHUNK_TOKENS:
            break
        text = longer
    return text, facts[0].asked(rng)


def embed(llm: MemoryLLM, texts: Sequence[str]) -> NDArray[np.float32]:
    """The embeddings, float32 (n, dim), that the write path would give these texts."""
    parts = [llm.writer.embedder.embed(texts[start : start + ADD]) for start in range(0, len(texts), ADD)]
    return np.concatenate(parts)


def fill(llm: MemoryLLM, history: History, vectors: NDArray[np.float32], tokens: int) -> int:
    """Write the history's first ``tokens`` tokens, and the KV of what its questions recall. Returns how many chunks."""
    handle = llm.store.scope(Scope(user=USER))
    n = history.cut(tokens)
    for start in range(0, n, ADD):
        handle.add(
            [
                NewMemory(
                    text=history.texts[at],
                    role=Role.USER,
                    turn=f"turn-{at}",
                    session=f"session-{at // 20}",
                    n_tokens=history.lengths[at],
                    embedding=vectors[at],
                )
                for at in range(start, min(start + ADD, n))
            ]
        )
    recalled = {}
    for question in history.questions:
        vector = llm.writer.embedder.embed([question])[0]
        for hit in handle.search(question, vector, top_k=SPARE * llm.reader.top_k, threshold=llm.reader.threshold):
            recalled[hit.memory.id] = hit.memory
    if recalled:
        llm.writer.schedule(handle, list(recalled.values()))
        llm.flush()
    return n


def store_path(folder: Path, tokens: int) -> Path:
    """The store that holds a history of so many tokens."""
    return folder / f"history-{tokens}.db"


def open_history(folder: Path, model: str, tokens: int) -> MemoryLLM:
    """The model with that store. Without a threshold every turn reads ``top_k`` memories, the most it can."""
    return MemoryLLM(model, store=store_path(folder, tokens), threshold=None)
