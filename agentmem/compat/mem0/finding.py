"""Memories as chunks: those of one turn, page by page, and the hits of several searches as one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from agentmem.memories import MOST_CHUNKS, Memories
from agentmem.records import Hit, Memory
from agentmem.store import EmbedderId
from agentmem.store.search import fuse
from agentmem.turns import in_order

PAGE = 500
"""Chunks that are read, or deleted, at once."""


def joined(searches: Sequence[Sequence[Hit]], embedder: EmbedderId | None) -> list[Hit]:
    """The hits of several searches, best first, as if they were of one: z-scores of one do not compare to another's."""
    if len(searches) < 2:
        return [hit for hits in searches for hit in hits]
    every = [(hit, hit.explain) for hits in searches for hit in hits if hit.explain is not None]
    lexical = {at: why.lexical for at, (_, why) in enumerate(every) if why.lexical is not None}
    dense = {at: why.dense for at, (_, why) in enumerate(every) if why.dense is not None}
    found = fuse(lexical, dense, 0.0, 0.0 if embedder is None else embedder.noise)
    return [Hit(memory=every[one.key][0].memory, score=one.score, explain=one.explain(None)) for one in found]


def newest(memories: Memories, filters: Mapping[str, Any]) -> Iterator[Memory]:
    """The chunks of a scope that pass the filters, newest first."""
    page, cursor = memories.page(sort="-created_at", limit=PAGE, **filters)
    yield from page
    while cursor is not None:
        page, cursor = memories.page(sort="-created_at", limit=PAGE, cursor=cursor, **filters)
        yield from page


def chunks_of(memories: Memories, turn: str) -> list[Memory]:
    """The chunks of a turn, in order; none when it is not there."""
    return in_order(memories.list(turns=[turn], limit=MOST_CHUNKS))
