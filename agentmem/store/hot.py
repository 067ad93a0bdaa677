"""The hot tier: decoded KV kept in RAM, within a budget of bytes.

Entries are looked up by (memory id, sha256 of the payload), and callers take the sha256 from the database
(``kv_digests``) each time. So a memory that was deleted or changed, in whatever process, is never served; ``discard``
only frees its bytes sooner.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from agentmem.errors import InvalidInput


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
        self._entries: dict[tuple[str, bytes], _Entry[V]] = {}
        self._nbytes = 0
        self._tick = 0
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        return self._nbytes

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, memory_id: str, sha256: bytes) -> V | None:
        """The value for exactly this payload, or None."""
        with self._lock:
            self._count()
            entry = self._entries.get((memory_id, sha256))
            if entry is None:
                return None
            entry.reads += 1
            entry.tick = self._tick
            return entry.value

    def put(self, memory_id: str, sha256: bytes, value: V) -> bool:
        """Keep a value; what is read least makes room.

        An older payload of the same memory is dropped. Returns False when the value alone is over the budget.
        """
        nbytes = int(value.nbytes)
        with self._lock:
            self._count()
            old = self._entries.get((memory_id, sha256))
            self._drop(memory_id)
            if nbytes > self.max_bytes:
                return False
            while self._nbytes + nbytes > self.max_bytes:
                least = min(self._entries, key=lambda key: (self._entries[key].reads, self._entries[key].tick))
                self._nbytes -= self._entries.pop(least).nbytes
            self._entries[memory_id, sha256] = _Entry(value, nbytes, old.reads if old else 1.0, self._tick)
            self._nbytes += nbytes
            return True

    def discard(self, memory_id: str) -> None:
        """Free what is held of a memory."""
        with self._lock:
            self._drop(memory_id)

    def clear(self) -> None:
        """Free everything."""
        with self._lock:
            self._entries.clear()
            self._nbytes = 0

    def _drop(self, memory_id: str) -> None:
        for key in [key for key in self._entries if key[0] == memory_id]:
            self._nbytes -= self._entries.pop(key).nbytes

    def _count(self) -> None:
        self._tick += 1
        if self._tick % _AGE_EVERY == 0:
            for entry in self._entries.values():
                entry.reads /= 2
