"""The hot tier: decoded KV kept in RAM, within a budget of bytes.

Entries are looked up by (space, memory id, sha256 of the payload), and callers take the sha256 from the database
(``load_kv``) each time. So a memory that was deleted, changed or has expired, in whatever process, is never served.
Its bytes are freed as well: at once in the process that deletes it, and in the others before their next recall
(``ScopedMemories.tend``, by a count of erasures that each space keeps).
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from agentmem.errors import InvalidInput
from agentmem.records import Scope


class Sized(Protocol):
    """Anything that knows how many bytes it holds."""

    @property
    def nbytes(self) -> int:
        """Bytes held."""


V = TypeVar("V", bound=Sized)


@dataclass
class _Entry(Generic[V]):
    value: V
    nbytes: int
    reads: float
    tick: int


_AGE_EVERY = 1024
"""Lookups after which all counts are halved, so that what was read often long ago can leave."""


class HotTier(Generic[V]):
    """Least-frequently-used cache; of equals the one read longest ago leaves. Thread-safe.

    Args:
        max_bytes: budget; 0 keeps nothing.
    """

    def __init__(self, max_bytes: int):
        if isinstance(max_bytes, bool) or not isinstance(max_bytes, int) or max_bytes < 0:
            raise InvalidInput(f"max_bytes must be a whole number from 0, not {max_bytes!r}")
        self.max_bytes = max_bytes
        self._entries: dict[tuple[Scope, str, bytes], _Entry[V]] = {}
        self._erasures: dict[Scope, int | None] = {}
        self._nbytes = 0
        self._tick = 0
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        return self._nbytes

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, space: Scope, memory_id: str, sha256: bytes) -> V | None:
        """The value for exactly this payload, or None."""
        with self._lock:
            self._count()
            entry = self._entries.get((space, memory_id, sha256))
            if entry is None:
                return None
            entry.reads += 1
            entry.tick = self._tick
            return entry.value

    def put(self, space: Scope, memory_id: str, sha256: bytes, value: V) -> bool:
        """Keep a value; what is read least makes room.

        An older payload of the same memory is dropped. Returns False when the value alone is over the budget.
        """
        nbytes = int(value.nbytes)
        with self._lock:
            self._count()
            old = self._entries.get((space, memory_id, sha256))
            self._drop(space, {memory_id})
            if nbytes > self.max_bytes:
                return False
            while self._nbytes + nbytes > self.max_bytes:
                least = min(self._entries, key=lambda key: (self._entries[key].reads, self._entries[key].tick))
                self._nbytes -= self._entries.pop(least).nbytes
            self._entries[space, memory_id, sha256] = _Entry(value, nbytes, old.reads if old else 1.0, self._tick)
            self._nbytes += nbytes
            return True

    def discard(self, space: Scope, memory_ids: Collection[str]) -> None:
        """Free what is held of memories."""
        with self._lock:
            self._drop(space, memory_ids)

    def spaces(self) -> dict[Scope, int | None]:
        """Of which spaces something may be held, each with its count of erasures when that was last looked at."""
        with self._lock:
            held = {space for space, _, _ in self._entries}
            self._erasures = {space: self._erasures.get(space) for space in held}
            return dict(self._erasures)

    def keep(self, space: Scope, digests: Mapping[str, bytes], erasures: int | None) -> None:
        """Free everything of a space but the payloads of ``digests`` (sha256 by memory id), as of a count."""
        with self._lock:
            for key in [key for key in self._entries if key[0] == space and digests.get(key[1]) != key[2]]:
                self._nbytes -= self._entries.pop(key).nbytes
            self._erasures[space] = erasures

    def ids(self, space: Scope) -> list[str]:
        """The memories of a space of which something is held."""
        with self._lock:
            return [memory_id for held, memory_id, _ in self._entries if held == space]

    def clear(self) -> None:
        """Free everything."""
        with self._lock:
            self._entries.clear()
            self._nbytes = 0

    def _drop(self, space: Scope, memory_ids: Collection[str]) -> None:
        for key in [key for key in self._entries if key[0] == space and key[1] in memory_ids]:
            self._nbytes -= self._entries.pop(key).nbytes

    def _count(self) -> None:
        self._tick += 1
        if self._tick % _AGE_EVERY == 0:
            for entry in self._entries.values():
                entry.reads /= 2
