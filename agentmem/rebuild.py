"""After a change of model or recipe: all KV encoded anew from the texts, not each at its next recall."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from agentmem.records import Memory
from agentmem.store import ScopedMemories
from agentmem.writer import BATCH, Writer

_PAGE = 1000

Advance = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Rebuilt:
    """What a rebuild did, in memories."""

    memories: int
    encoded: int
    """Had no KV of this model and recipe."""
    replaced: int
    """Payloads of other models and recipes that went."""
    cold: int
    """Left as text, because the budget of KV is full of those that are used more."""


def rebuild(writer: Writer, handles: Sequence[ScopedMemories], advance: Advance) -> Rebuilt:
    """Encode every memory that has no KV under the writer's fingerprint, most used first; KV of others goes with it.

    Each batch is stored before the next is encoded: what was interrupted goes on where it stopped.
    """
    totals = [handle.count() for handle in handles]
    memories = encoded = replaced = cold = 0
    for handle in handles:
        full = False
        for batch in _batches(handle):
            memories += len(batch)
            ids = [memory.id for memory in batch]
            known = handle.kv_digests(ids, fingerprint=writer.fingerprint)
            lacking = [memory for memory in batch if memory.id not in known]
            replaced += handle.drop_foreign_kv(ids, fingerprint=writer.fingerprint)
            if lacking and not full:
                writer.packing.attach(handle, lacking, writer.recipe.encode(writer.model, lacking))
                stayed = handle.kv_digests([memory.id for memory in lacking], fingerprint=writer.fingerprint)
                encoded += len(stayed)
                cold += len(lacking) - len(stayed)
                full = len(stayed) < len(lacking)  # what comes is used less, and would be evicted as well
            else:
                cold += len(lacking)
            advance("encoding", memories, sum(totals))
    return Rebuilt(memories, encoded, replaced, cold)


def _batches(handle: ScopedMemories) -> list[list[Memory]]:
    """All memories, most used first; read before any of them changes."""
    everything: list[Memory] = []
    while page := handle.list(sort="-frequency", limit=_PAGE, offset=len(everything)):
        everything += page
    return [everything[start : start + BATCH] for start in range(0, len(everything), BATCH)]
