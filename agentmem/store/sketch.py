"""Nearest neighbours on SQLite: the vectors of a space in RAM, or of a large one a bit for each of their numbers.

Signs stand for vectors (random hyperplanes, Charikar 2002, section 3, with the axes as planes, through the vectors'
mean): those that differ least from the query's are the candidates, and only they are compared by their numbers.

What is held agrees with the snapshot of whoever asks: vec0 says of each chunk which of its places are taken and by
whom, and chunks of which that has changed are read anew; everything is, when something of the space was erased or got
another vector (``tally.erasures``), in whatever process.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Set
from typing import Any, TypeVar

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from agentmem.store import vec0_chunks
from agentmem.store.vec0_chunks import CHUNK

LEAST = 20_000
"""Vectors of a space from which on signs stand for them; fewer are held whole."""
LEAST_DIM = 128
"""Shorter vectors have too few signs to tell them apart."""
OVERSAMPLE = 20
"""Candidates for each neighbour that is wanted. Among them are 0.999 of the true 10 nearest and 0.985 of the true 50
(bundled embedder, 6,000 turns of LongMemEval-S); without the mean taken off 0.919 and 0.864."""
MOST = 4000
"""Candidates at most; where more are wanted, all vectors are compared."""
BUDGET = 128 * 2**20
"""Bytes of all that is held of a store; the spaces asked for longest ago go first."""

_FAR = np.iinfo(np.uint32).max


class _Held:
    """One space's vectors under one embedder, by chunks: ``width`` numbers of a type stand for each."""

    def __init__(self, erasures: int, width: int, dtype: type[np.generic]):
        self.erasures = erasures
        self._state: vec0_chunks.State = {}
        """What vec0 said of each chunk when it was read."""
        self._place: dict[int, int] = {}
        """Where each chunk lies in the arrays."""
        self._free: list[int] = []
        self._rows: NDArray[Any] = np.zeros((0, CHUNK, width), dtype)
        self._keys = np.zeros((0, CHUNK), np.int64)
        self._taken = np.zeros((0, CHUNK), bool)

    @property
    def nbytes(self) -> int:
        """Bytes of RAM."""
        return int(self._rows.nbytes + self._keys.nbytes + self._taken.nbytes) + 700 * len(self._state)

    def read(self, connection: sa.Connection, table: str, space_id: int) -> None:
        """Bring what is held to the connection's snapshot."""
        now = vec0_chunks.state(connection, table, space_id)
        for gone in self._state.keys() - now.keys():
            del self._state[gone]
            self._taken[self._place[gone]] = False
            self._free.append(self._place.pop(gone))
        changed = [chunk for chunk, one in now.items() if self._state.get(chunk) != one]
        self._begin(connection, table, {chunk: now[chunk] for chunk in changed})
        for chunk, vectors in vec0_chunks.vectors(connection, table, changed):
            self._put(chunk, now[chunk], vectors)

    def _begin(self, connection: sa.Connection, table: str, changed: vec0_chunks.State) -> None:
        """Before chunks are put."""

    def _stand_for(self, vectors: NDArray[np.float32]) -> NDArray[Any]:
        """What is held of vectors ``(n, dim)``."""
        return vectors

    def _put(self, chunk: int, state: bytes, vectors: NDArray[np.float32]) -> None:
        if chunk not in self._place:
            if not self._free:
                self._grow()
            self._place[chunk] = self._free.pop()
        at = self._place[chunk]
        self._rows[at] = self._stand_for(vectors)
        self._taken[at], self._keys[at] = vec0_chunks.taken(state), vec0_chunks.keys(state)
        self._state[chunk] = state

    def _grow(self) -> None:
        old = len(self._keys)
        more = max(16, old // 4)
        self._rows = np.concatenate([self._rows, np.zeros((more, *self._rows.shape[1:]), self._rows.dtype)])
        self._keys = np.concatenate([self._keys, np.zeros((more, CHUNK), np.int64)])
        self._taken = np.concatenate([self._taken, np.zeros((more, CHUNK), bool)])
        self._free.extend(range(old, old + more))


class Vectors(_Held):
    """The vectors themselves."""

    def __init__(self, dim: int, erasures: int):
        super().__init__(erasures, dim, np.float32)

    def nearest(self, vector: bytes, limit: int, also: Set[int]) -> dict[int, float]:
        """Cosine by memory key of the best ``limit``, best first, and of ``also``."""
        cosines = self._rows.reshape(-1, self._rows.shape[2]) @ np.frombuffer(vector, "<f4")
        there = self._taken.reshape(-1)
        return vec0_chunks.best(self._keys.reshape(-1)[there], cosines[there], limit, also)


class Sketch(_Held):
    """The signs of the vectors."""

    def __init__(self, dim: int, erasures: int):
        self._bytes = -(-dim // 64) * 8
        self._middle: NDArray[np.float32] | None = None
        super().__init__(erasures, self._bytes // 8, np.uint64)

    def _begin(self, connection: sa.Connection, table: str, changed: vec0_chunks.State) -> None:
        if self._middle is None:
            self._middle = _mean(connection, table, dict(list(changed.items())[:200]))

    def _stand_for(self, vectors: NDArray[np.float32]) -> NDArray[Any]:
        assert self._middle is not None, "_begin has set it"
        return signs(vectors - self._middle, self._bytes)

    def nearest(self, vector: bytes, count: int) -> list[int]:
        """Keys of the ``count`` memories whose signs differ least from the query's, in no order."""
        query = self._stand_for(np.frombuffer(vector, "<f4")[None])[0]
        differ = np.bitwise_count(self._rows ^ query).sum(axis=2, dtype=np.uint32)
        differ[~self._taken] = _FAR
        there = int(self._taken.sum())
        if count < there:
            nearest = self._keys.reshape(-1)[np.argpartition(differ.reshape(-1), count)[:count]]
        else:
            nearest = self._keys[self._taken]
        found: list[int] = nearest.tolist()
        return found


def signs(vectors: NDArray[np.float32], nbytes: int) -> NDArray[np.uint64]:
    """One bit per number, ``(n, dim)`` to ``(n, nbytes / 8)``."""
    packed = np.packbits(vectors > 0, axis=1)
    padded = np.zeros((len(vectors), nbytes), np.uint8)
    padded[:, : packed.shape[1]] = packed
    return padded.view(np.uint64)


def _mean(connection: sa.Connection, table: str, some: vec0_chunks.State) -> NDArray[np.float32]:
    """Mean of the vectors of some chunks; it only has to be near that of all."""
    total, count = np.float32(0.0), 0
    for chunk, vectors in vec0_chunks.vectors(connection, table, some):
        there = vec0_chunks.taken(some[chunk])
        total, count = total + vectors[there].sum(axis=0), count + int(there.sum())
    return np.asarray(total / np.float32(max(count, 1)), np.float32)


H = TypeVar("H", Vectors, Sketch)


class _Shelf:
    """What is held of one store in this process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.held: OrderedDict[tuple[type, str, int], Vectors | Sketch] = OrderedDict()

    def take(self, kind: type[H], connection: sa.Connection, table: str, space_id: int, erasures: int, dim: int) -> H:
        """What is held of a space, brought to the connection's snapshot."""
        name = (kind, table, space_id)
        held = self.held.get(name)
        if not isinstance(held, kind) or held.erasures != erasures:
            held = self.held[name] = kind(dim, erasures)
        self.held.move_to_end(name)
        held.read(connection, table, space_id)
        while len(self.held) > 1 and sum(one.nbytes for one in self.held.values()) > BUDGET:
            self.held.popitem(last=False)
        return held


_shelves: weakref.WeakKeyDictionary[Any, _Shelf] = weakref.WeakKeyDictionary()


def _shelf(connection: sa.Connection) -> _Shelf:
    return _shelves.setdefault(connection.engine.pool, _Shelf())


def nearest(
    connection: sa.Connection, table: str, space_id: int, erasures: int, vector: bytes, limit: int, also: Set[int]
) -> dict[int, float]:
    """Cosine by memory key of the best ``limit`` of a space, best first, and of ``also``. Every vector is compared.

    ``erasures`` is the space's count of them, as of the connection's snapshot.
    """
    shelf = _shelf(connection)
    with shelf.lock:  # also while it is asked: another thread may bring it to another snapshot
        held = shelf.take(Vectors, connection, table, space_id, erasures, len(vector) // 4)
        return held.nearest(vector, limit, also)


def candidates(
    connection: sa.Connection, table: str, space_id: int, erasures: int, vector: bytes, count: int
) -> list[int]:
    """Keys of the ``count`` memories of a space that seem nearest to a vector, in no order.

    ``erasures`` as in ``nearest``.
    """
    shelf = _shelf(connection)
    with shelf.lock:
        held = shelf.take(Sketch, connection, table, space_id, erasures, len(vector) // 4)
        return held.nearest(vector, count)


def forget(connection: sa.Connection) -> None:
    """Hold nothing any more, since vectors are erased. (Other processes notice when they next ask.)"""
    shelf = _shelf(connection)
    with shelf.lock:
        shelf.held.clear()
