"""Nearest neighbours in a large space on SQLite: one bit for each number of each vector, in RAM.

Signs stand for vectors (random hyperplanes, Charikar 2002, section 3, with the axes as planes, through the vectors'
mean): those that differ least from the query's are the candidates, and only they are compared by their numbers.

A sketch agrees with the snapshot of whoever asks: vec0 says of each chunk which of its places are taken and by whom,
and chunks of which that has changed are read anew; everything is, when something of the space was erased or got another
vector (``tally.erasures``), in whatever process.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from agentmem.store import vec0_chunks
from agentmem.store.vec0_chunks import CHUNK

LEAST = 20_000
"""Vectors of a space from which on its sketch is asked; fewer are compared in less time."""
LEAST_DIM = 128
"""Shorter vectors have too few signs to tell them apart."""
OVERSAMPLE = 20
"""Candidates for each neighbour that is wanted. Among them are 0.999 of the true 10 nearest and 0.985 of the true 50
(bundled embedder, 6,000 turns of LongMemEval-S); without the mean taken off 0.919 and 0.864."""
MOST = 4000
"""Candidates at most; where more are wanted, all vectors are compared."""
BUDGET = 128 * 2**20
"""Bytes of all sketches of a store; the ones asked for longest ago go first."""

_FAR = np.iinfo(np.uint32).max


class Sketch:
    """The signs of one space's vectors under one embedder."""

    def __init__(self, dim: int, erasures: int):
        self.erasures = erasures
        self._bytes = -(-dim // 64) * 8
        self._middle: NDArray[np.float32] | None = None
        self._state: vec0_chunks.State = {}
        """What vec0 said of each chunk when it was read."""
        self._place: dict[int, int] = {}
        """Where each chunk lies in the arrays."""
        self._free: list[int] = []
        self._signs = np.zeros((0, CHUNK, self._bytes // 8), np.uint64)
        self._keys = np.zeros((0, CHUNK), np.int64)
        self._taken = np.zeros((0, CHUNK), bool)

    @property
    def nbytes(self) -> int:
        """Bytes of RAM."""
        return int(self._signs.nbytes + self._keys.nbytes + self._taken.nbytes) + 700 * len(self._state)

    def read(self, connection: sa.Connection, table: str, space_id: int) -> None:
        """Bring the sketch to the connection's snapshot."""
        now = vec0_chunks.state(connection, table, space_id)
        for gone in self._state.keys() - now.keys():
            del self._state[gone]
            self._taken[self._place[gone]] = False
            self._free.append(self._place.pop(gone))
        changed = [chunk for chunk, one in now.items() if self._state.get(chunk) != one]
        if self._middle is None:
            self._middle = _mean(connection, table, {chunk: now[chunk] for chunk in changed[:200]})
        for chunk, vectors in vec0_chunks.vectors(connection, table, changed):
            self._put(chunk, now[chunk], vectors - self._middle)

    def _put(self, chunk: int, state: bytes, centred: NDArray[np.float32]) -> None:
        if chunk not in self._place:
            if not self._free:
                self._grow()
            self._place[chunk] = self._free.pop()
        at = self._place[chunk]
        self._signs[at] = signs(centred, self._bytes)
        self._taken[at], self._keys[at] = vec0_chunks.taken(state), vec0_chunks.keys(state)
        self._state[chunk] = state

    def _grow(self) -> None:
        old = len(self._keys)
        more = max(16, old // 4)
        self._signs = np.concatenate([self._signs, np.zeros((more, *self._signs.shape[1:]), np.uint64)])
        self._keys = np.concatenate([self._keys, np.zeros((more, CHUNK), np.int64)])
        self._taken = np.concatenate([self._taken, np.zeros((more, CHUNK), bool)])
        self._free.extend(range(old, old + more))

    def nearest(self, vector: bytes, count: int) -> list[int]:
        """Keys of the ``count`` memories whose signs differ least from the query's, in no order."""
        assert self._middle is not None, "read before it is asked"
        query = signs((np.frombuffer(vector, "<f4") - self._middle)[None], self._bytes)[0]
        differ = np.bitwise_count(self._signs ^ query).sum(axis=2, dtype=np.uint32)
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


class _Shelf:
    """The sketches of one store in this process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.sketches: OrderedDict[tuple[str, int], Sketch] = OrderedDict()

    def trim(self) -> None:
        """Let the oldest go while there are too many; the last one stays."""
        while len(self.sketches) > 1 and sum(sketch.nbytes for sketch in self.sketches.values()) > BUDGET:
            self.sketches.popitem(last=False)


_shelves: weakref.WeakKeyDictionary[Any, _Shelf] = weakref.WeakKeyDictionary()


def candidates(
    connection: sa.Connection, table: str, space_id: int, erasures: int, vector: bytes, count: int
) -> list[int]:
    """Keys of the ``count`` memories of a space that seem nearest to a vector, in no order.

    ``erasures`` is the space's count of them, as of the connection's snapshot.
    """
    shelf, name = _shelves.setdefault(connection.engine.pool, _Shelf()), (table, space_id)
    with shelf.lock:  # also while it is asked: another thread may bring it to another snapshot
        sketch = shelf.sketches.get(name)
        if sketch is None or sketch.erasures != erasures:
            sketch = shelf.sketches[name] = Sketch(len(vector) // 4, erasures)
        shelf.sketches.move_to_end(name)
        sketch.read(connection, table, space_id)
        found = sketch.nearest(vector, count)
        shelf.trim()
    return found
