"""AgentMemMiddleware: memory for agents of any chat model, as words in the system prompt."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from langchain.agents.middleware import AgentMiddleware, AgentState, ModelRequest, ModelResponse
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, SystemMessage
from langgraph.runtime import Runtime

from agentmem import MemoryLLM, Role

HEAD = "What you remember of earlier conversations, which may or may not matter now:"


class AgentMemMiddleware(AgentMiddleware):
    """Recall before each call of the model, remember after each run.

    For agents whose model is another than ``ChatAgentMem``, which needs neither: it reads memory by attention.

    Args:
        llm: An open ``MemoryLLM``, whose model only embeds; close it yourself.
        user: Whose memory is read and written.
        agent: Of which agent.
        k: Most memories in a prompt.
        threshold: Least score (sum of z-scores) of what is recalled; None for the best ``k``.
    """

    def __init__(
        self, llm: MemoryLLM, *, user: str, agent: str = "", k: int = 8, threshold: float | None = 1.0
    ) -> None:
        super().__init__()
        self._memories = llm.memories(user=user, agent=agent)
        self._k, self._threshold = k, threshold

    def wrap_model_call(self, request: ModelRequest, handler: Callable[[ModelRequest], ModelResponse]) -> ModelResponse:
        """Put what the newest question recalls behind the system prompt."""
        return handler(self._recalled(request))

    async def awrap_model_call(
        self, request: ModelRequest, handler: Callable[[ModelRequest], Awaitable[ModelResponse]]
    ) -> ModelResponse:
        """As ``wrap_model_call``; the search runs in a thread of its own."""
        return await handler(await asyncio.to_thread(self._recalled, request))

    def after_agent(self, state: AgentState[Any], runtime: Runtime[Any]) -> None:
        """Remember what was said; what is known already is not stored again."""
        for message in state["messages"]:
            if isinstance(message, HumanMessage | AIMessage) and message.text.strip():
                role = Role.USER if isinstance(message, HumanMessage) else Role.ASSISTANT
                self._memories.add(message.text, id=_id(message), role=role)

    async def aafter_agent(self, state: AgentState[Any], runtime: Runtime[Any]) -> None:
        """As ``after_agent``, in a thread of its own."""
        await asyncio.to_thread(self.after_agent, state, runtime)

    def _recalled(self, request: ModelRequest) -> ModelRequest:
        question = next((m.text for m in reversed(request.messages) if isinstance(m, HumanMessage)), "")
        if not question.strip():
            return request
        shown = {_id(message) for message in request.messages}
        hits = self._memories.search(question, top_k=self._k, threshold=self._threshold, exclude=shown)
        lines = _lines([hit.memory.text for hit in hits])
        if not lines:
            return request
        head = [request.system_message.text] if request.system_message else []
        return request.override(system_message=SystemMessage("\n\n".join([*head, f"{HEAD}\n{lines}"])))


def _id(message: AnyMessage) -> str:
    """Id of a message as a memory: LangGraph gives each message an id, under which it may be changed."""
    return hashlib.sha256(f"{message.id}\x00{message.text}".encode()).hexdigest()[:32]


def _lines(texts: Sequence[str]) -> str:
    return "\n".join(f"- {text.strip()}" for text in texts)
