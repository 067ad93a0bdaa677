"""AgentMemRetriever: what a user is remembered by, as nodes."""

from __future__ import annotations

import asyncio
from typing import Any

from llama_index.core.callbacks import CallbackManager
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

from agentmem import MemoryLLM


class AgentMemRetriever(BaseRetriever):
    """Hybrid search in the memories of one user (and agent).

    Args:
        llm: An open ``MemoryLLM``; close it yourself.
        user: Whose memories.
        agent: Of which agent.
        k: Most nodes.
        threshold: Least score (sum of z-scores); None for the best ``k``, whatever their score.
        filters: As of ``Memories.search``, such as ``{"role": "user", "under": "work"}``.
        callback_manager: LlamaIndex's.
    """

    def __init__(
        self,
        llm: MemoryLLM,
        *,
        user: str,
        agent: str = "",
        k: int = 4,
        threshold: float | None = None,
        filters: dict[str, Any] | None = None,
        callback_manager: CallbackManager | None = None,
    ) -> None:
        self._memories = llm.memories(user=user, agent=agent)
        self._asked = {"top_k": k, "threshold": threshold, **(filters or {})}
        super().__init__(callback_manager=callback_manager)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return [
            NodeWithScore(
                node=TextNode(
                    id_=hit.memory.id,
                    text=hit.memory.text,
                    metadata=hit.memory.meta
                    | {"role": str(hit.memory.role), "created_at": hit.memory.created_at.isoformat()},
                ),
                score=hit.score,
            )
            for hit in self._memories.search(query_bundle.query_str, **self._asked)
        ]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await asyncio.to_thread(self._retrieve, query_bundle)
