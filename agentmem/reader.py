"""Reading: recall the memories that matter now, get their KV, and place it for attention."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from agentmem.arriving import Prefetcher
from agentmem.errors import PayloadDamaged
from agentmem.model.attention import Placed
from agentmem.model.kv import KV
from agentmem.packing import Packed
from agentmem.records import Hit
from agentmem.store import HotTier, ScopedMemories
from agentmem.writer import Writer


@dataclass
class Recalled:
    """What one recall found, ready to be read."""

    hits: list[Hit] = field(default_factory=list)
    placed: Placed | None = None
    rebuilt: frozenset[str] = frozenset()
    """Ids whose KV was re-encoded from text."""
    notes: tuple[str, ...] = ()

    @property
    def ids(self) -> list[str]:
        """Ids in the order of the placed spans."""
        return [hit.memory.id for hit in self.hits]

    @property
    def n_tokens(self) -> int:
        """Memory tokens that are read."""
        return 0 if self.placed is None else self.placed.n_tokens


class Loaded(NamedTuple):
    """KV of the memories that are to be read, in their order; sha256 of what was on disk, by id."""

    sources: list[KV | Packed]
    digests: dict[str, bytes]
    rebuilt: frozenset[str]
    notes: tuple[str, ...]


class Reader:
    """Recall and load for one model and store."""

    def __init__(self, writer: Writer, hot: HotTier[KV], *, top_k: int, threshold: float | None):
        self._writer = writer
        self._hot = hot
        self._prefetcher = Prefetcher()
        self.top_k, self.threshold = top_k, threshold

    def clear(self) -> None:
        """Drop KV that is held in RAM; the next recall loads it from disk."""
        self._hot.clear()

    def recall(
        self, handle: ScopedMemories, query: str, exclude: Collection[str], current: Recalled | None = None
    ) -> Recalled:
        """The top-k memories for the query, placed by the recipe. Empty when nothing passes the threshold.

        ``current`` is what is being read: it is given back, not loaded and placed again, when the same is found.
        """
        if not query.strip() or self.top_k == 0:
            return Recalled()
        handle.tend(self._hot, fingerprint=self._writer.fingerprint)
        vector = self._writer.embedder.embed([query])[0]
        found = handle.search(query, vector, top_k=2 * self.top_k, threshold=self.threshold, exclude=exclude)
        # Oldest first: recipes that give memories positions of their own lay them out in the order of writing.
        hits = sorted(_distinct(found)[: self.top_k], key=lambda hit: (hit.memory.created_at, hit.memory.chunk_no))
        if current is not None and current.ids == [hit.memory.id for hit in hits]:
            return current
        if not hits:
            return Recalled()
        sources, digests, rebuilt, notes = self._load(handle, hits)

        def arrived(at: int, kv: KV) -> None:
            self._hot.put(handle.space, hits[at].memory.id, digests[hits[at].memory.id], kv)

        writer = self._writer
        placed = self._prefetcher.place(writer.recipe, writer.model, sources, arrived)
        return Recalled(hits, placed, rebuilt, notes)

    def close(self) -> None:
        """Wait for KV on its way from disk."""
        self._prefetcher.close()

    def _load(self, handle: ScopedMemories, hits: Sequence[Hit]) -> Loaded:
        """The KV of every hit: from RAM, else from disk, else re-encoded from text (and stored again)."""
        writer, space = self._writer, handle.space
        ids = [hit.memory.id for hit in hits]
        found: dict[str, KV | Packed] = {}
        unreadable: list[str] = []

        def held(id: str, sha256: bytes) -> bool:
            if (kv := self._hot.get(space, id, sha256)) is not None:
                found[id] = kv
            return id in found

        loaded = handle.load_kv(ids, fingerprint=writer.fingerprint, held=held)
        for id, payload in loaded.payloads.items():
            try:
                found[id] = writer.packing.open(payload.data)
            except PayloadDamaged:
                unreadable.append(id)
        lost = [hit.memory for hit in hits if hit.memory.id not in found]
        if lost:
            encoded = writer.recipe.encode(writer.model, lost)
            found |= {memory.id: kv for memory, kv in zip(lost, encoded, strict=True)}
            writer.schedule(handle, lost, encoded)
        notes = [
            f"KV of {len(some)} memories {why} and was re-encoded from text"
            for some, why in (
                (loaded.damaged, "failed its checksum"),
                (loaded.foreign, "was written by another model or recipe"),
                (unreadable, "could not be read"),
            )
            if some
        ]
        return Loaded(
            [found[id] for id in ids],
            {id: payload.sha256 for id, payload in loaded.payloads.items()},
            frozenset(memory.id for memory in lost),
            tuple(notes),
        )


def _distinct(hits: Sequence[Hit]) -> list[Hit]:
    """One hit per speaker and text: the same words read twice would only take room from others."""
    seen: dict[tuple[str, str], Hit] = {}
    for hit in hits:
        seen.setdefault((hit.memory.role, hit.memory.text), hit)
    return list(seen.values())
