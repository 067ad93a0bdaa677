"""AgentMemRetriever: what a user is remembered by, as documents."""

from __future__ import annotations

from typing import Any

from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from pydantic import ConfigDict, Field

from agentmem import MemoryLLM


class AgentMemRetriever(BaseRetriever):
    """Hybrid search in the memories of one user (and agent).

    Args:
        llm: An open ``MemoryLLM``; close it yourself.
        user: Whose memories.
        agent: Of which agent.
        k: Most documents; ``invoke(query, k=...)`` for one search.
        threshold: Least score (sum of z-scores); None for the best ``k``, whatever their score.
        filters: As of ``Memories.search``, such as ``{"role": "user", "under": "work"}``.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    llm: MemoryLLM = Field(exclude=True, repr=False)
    user: str
    agent: str = ""
    k: int = 4
    threshold: float | None = None
    filters: dict[str, Any] = Field(default_factory=dict)

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, k: int | None = None
    ) -> list[Document]:
        memories = self.llm.memories(user=self.user, agent=self.agent)
        hits = memories.search(query, top_k=self.k if k is None else k, threshold=self.threshold, **self.filters)
        return [
            Document(
                id=hit.memory.id,
                page_content=hit.memory.text,
                metadata=hit.memory.meta
                | {"score": hit.score, "role": str(hit.memory.role), "created_at": hit.memory.created_at.isoformat()},
            )
            for hit in hits
        ]
