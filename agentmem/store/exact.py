"""Cosines by the vectors themselves, as the table of embeddings keeps them; the same on every engine."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import sqlalchemy as sa

from agentmem.store.schema import Embedding

_SLICE = 500  # ids per statement

# Built once: building an expression costs more than running it.
_VECTORS = sa.select(Embedding.memory_id, Embedding.vec).where(
    Embedding.model_id == sa.bindparam("model"), Embedding.memory_id.in_(sa.bindparam("keys", expanding=True))
)


def cosines(connection: sa.Connection, model_id: int, vector: bytes, keys: Collection[int]) -> dict[int, float]:
    """Cosine by memory key; memories without an embedding are left out."""
    query, wanted = np.frombuffer(vector, "<f4"), list(keys)
    found: dict[int, float] = {}
    for start in range(0, len(wanted), _SLICE):
        rows = connection.execute(_VECTORS, {"model": model_id, "keys": wanted[start : start + _SLICE]})
        found.update({key: float(np.frombuffer(packed, "<f4") @ query) for key, packed in rows})
    return found
