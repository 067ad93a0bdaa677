"""AgentMemMemoryRetriever: what a user is remembered by, as messages for a prompt."""

from __future__ import annotations

from typing import Any

from haystack import component, default_from_dict, default_to_dict
from haystack.dataclasses import ChatMessage

from haystack_integrations.memory_stores.agentmem_kv import AgentMemMemoryStore


@component
class AgentMemMemoryRetriever:
    """Hybrid search in the memories of one user (and agent), for generators whose model is another.

    Args:
        memory_store: The model, which only embeds, and its memory; None for the file ``memory.db``.
        top_k: Most memories.
        threshold: Least score (sum of z-scores); None for the best ``top_k``, whatever their score.
        filters: As of agentmem's ``Memories.search``, such as ``{"role": "user", "under": "work"}``.
    """

    def __init__(
        self,
        memory_store: AgentMemMemoryStore | None = None,
        *,
        top_k: int = 5,
        threshold: float | None = None,
        filters: dict[str, Any] | None = None,
    ) -> None:
        self.memory_store = memory_store or AgentMemMemoryStore()
        self.top_k, self.threshold, self.filters = top_k, threshold, filters or {}

    def warm_up(self) -> None:
        """Open the model."""
        _ = self.memory_store.llm

    def close(self) -> None:
        """Let go of the model."""
        self.memory_store.close()

    def to_dict(self) -> dict[str, Any]:
        """The component without the open model."""
        return default_to_dict(
            self, memory_store=self.memory_store, top_k=self.top_k, threshold=self.threshold, filters=dict(self.filters)
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> AgentMemMemoryRetriever:
        """The component that ``to_dict`` described."""
        return default_from_dict(cls, data)

    @component.output_types(memories=list[ChatMessage])
    def run(
        self,
        query: str,
        *,
        user_id: str,
        agent_id: str = "",
        top_k: int | None = None,
        filters: dict[str, Any] | None = None,
    ) -> dict[str, list[ChatMessage]]:
        """What the query finds, best first, as system messages with scores in their ``meta``."""
        hits = self.memory_store.llm.memories(user=user_id, agent=agent_id).search(
            query,
            top_k=self.top_k if top_k is None else top_k,
            threshold=self.threshold,
            **(self.filters if filters is None else filters),
        )
        memories = [
            ChatMessage.from_system(
                hit.memory.text,
                meta=hit.memory.meta
                | {
                    "memory_id": hit.memory.id,
                    "score": hit.score,
                    "role": str(hit.memory.role),
                    "created_at": hit.memory.created_at.isoformat(),
                },
            )
            for hit in hits
        ]
        return {"memories": memories}
