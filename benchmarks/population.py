"""Many memories of many scopes, drawn from a seed: texts with the word frequencies of real dialogue, and vectors.

A word's share of the texts it stands in is that of LongMemEval-S (Wu et al., 2024; 56,559 turns of its sessions, cut at
500 characters, stop-words aside), so that a search meets posting lists of the right lengths. Vectors lie around
topics, as those of sentence encoders do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agentmem.records import Role
from agentmem.store import NewMemory

FREQUENCY = ((1, 0.293), (2, 0.222), (6, 0.123), (11, 0.0864), (31, 0.0522), (101, 0.0274))
RARE = ((301, 0.0138), (1001, 0.0052), (3001, 0.00154), (10_001, 0.00023), (48_941, 0.000018))
"""(rank of a word, share of the texts that it stands in), joined by power laws."""
WORDS = 27
"""Different words of a text, stop-words aside (mean of the same turns)."""
SMALL = ("the", "of", "and", "to", "a", "in", "is", "it", "you", "that", "was", "for", "on", "are", "with", "as", "at")
"""As many stop-words are put between: what a text costs to read and to write."""
ASKED = 8
"""Words of a query (mean of LongMemEval's questions)."""
DIM, LATENT, TOPICS = 384, 64, 20_000
BATCH = 100
"""Memories per transaction while filling; the turns of one session."""

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Query:
    """Words of one memory, and a vector near its own."""

    text: str
    vector: Vectors


class Population:
    """A source of memories: the same seed gives the same ones."""

    def __init__(self, seed: int):
        self._dice = np.random.default_rng(seed)
        ranks, shares = zip(*FREQUENCY, *RARE, strict=True)
        everyone = np.arange(1, ranks[-1] + 1)
        weights = np.exp(np.interp(np.log(everyone), np.log(ranks), np.log(shares)))
        self._weights = np.cumsum(weights / weights.sum())
        self._words = np.array([_word(rank) for rank in everyone])
        world = np.random.default_rng(0)  # one world for all seeds: fillers and askers mean the same by a topic
        self._topics = world.standard_normal((TOPICS, LATENT), dtype=np.float32)
        self._map = world.standard_normal((LATENT, DIM), dtype=np.float32) / LATENT**0.5

    def batch(self, session: str) -> list[NewMemory]:
        """One session of turns, user and assistant by turns."""
        vectors = self._vectors(self._dice.integers(TOPICS, size=BATCH))
        made = []
        for number, (words, vector) in enumerate(zip(self._texts(BATCH), vectors, strict=True)):
            role = Role.ASSISTANT if number % 2 else Role.USER
            text = " ".join(f"{word} {SMALL[at % len(SMALL)]}" for at, word in enumerate(words))
            made.append(
                NewMemory(
                    text=text, role=role, turn=f"{session}-{number}", session=session, n_tokens=70, embedding=vector
                )
            )
        return made

    def queries(self, texts: Sequence[str]) -> Iterator[Query]:
        """A question about each of these texts."""
        vectors = self._vectors(self._dice.integers(TOPICS, size=len(texts)))
        for text, vector in zip(texts, vectors, strict=True):
            asked = self._dice.choice(text.split()[::2], size=ASKED, replace=False)
            yield Query(" ".join(asked), vector)

    def _texts(self, count: int) -> list[NDArray[np.str_]]:
        drawn = np.searchsorted(self._weights, self._dice.random((count, 2 * WORDS)))
        return [self._words[list(dict.fromkeys(row))[:WORDS]] for row in drawn.tolist()]

    def _vectors(self, topics: NDArray[np.int64]) -> Vectors:
        latent = self._topics[topics] + 0.5 * self._dice.standard_normal((len(topics), LATENT), dtype=np.float32)
        vectors = np.tanh(latent @ self._map)
        unit: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return unit


def _word(rank: int) -> str:
    """A pronounceable name that the stemmer leaves alone."""
    letters = []
    while rank:
        rank, sound = divmod(rank, 70)
        letters.append("bcdfghjklmnprt"[sound // 5] + "aeiou"[sound % 5])
    return "".join(letters) + "k"
