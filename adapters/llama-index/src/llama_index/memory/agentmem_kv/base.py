"""AgentMemBlock: long-term memory for ``Memory``, whose newest messages are the short-term one."""

from __future__ import annotations

import asyncio
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.bridge.pydantic import Field
from llama_index.core.memory import BaseMemoryBlock

from agentmem import MemoryLLM, Message, Role

from llama_index.llms.agentmem_kv.convert import to_messages


class AgentMemBlock(BaseMemoryBlock[str]):
    """What ``Memory`` lets go of is kept for good; what the newest question recalls is told to the model in words.

    For any LLM. ``AgentMem`` needs it not: it reads memory by attention.

    Args:
        llm: An open ``MemoryLLM``, whose model only embeds; close it yourself.
        user: Whose memory is read and written.
        agent: Of which agent.
        k: Most memories in a prompt.
        threshold: Least score (sum of z-scores) of what is recalled; None for the best ``k``.
    """

    name: str = "agentmem"
    llm: MemoryLLM = Field(exclude=True, repr=False)
    user: str
    agent: str = ""
    k: int = 8
    threshold: float | None = 1.0

    async def _aget(self, messages: list[ChatMessage] | None = None, **block_kwargs: Any) -> str:
        return await asyncio.to_thread(self._recalled, messages or [])

    def _recalled(self, messages: list[ChatMessage]) -> str:
        asked = [message.content or "" for message in messages if message.role == MessageRole.USER]
        if not asked or not asked[-1].strip():
            return ""
        shown = {(message.content or "").strip() for message in messages}
        memories = self.llm.memories(user=self.user, agent=self.agent)
        hits = memories.search(asked[-1], top_k=self.k + len(shown), threshold=self.threshold)
        texts = [hit.memory.text.strip() for hit in hits]
        return "\n".join(f"- {text}" for text in [text for text in texts if text not in shown][: self.k])

    async def _aput(self, messages: list[ChatMessage]) -> None:
        await asyncio.to_thread(self._keep, messages)

    def _keep(self, messages: list[ChatMessage]) -> None:
        memories = self.llm.memories(user=self.user, agent=self.agent)
        for given, plain in zip(messages, to_messages(messages), strict=True):
            message = Message.model_validate(plain)
            if message.role is not Role.SYSTEM and message.text.strip():
                session = given.additional_kwargs.get("session_id")
                memories.add(message.text, role=message.role, session=session)
