"""RecallTool and ``remember``: memory for agents of any model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from smolagents import ActionStep, FinalAnswerStep, MemoryStep, TaskStep, Tool

from agentmem import MemoryLLM, Role


class RecallTool(Tool):  # type: ignore[misc]  # smolagents has no types
    """Looks up what a user is remembered by. ``AgentMemModel`` needs no such tool: it reads memory by attention.

    Args:
        llm: An open ``MemoryLLM``; close it yourself.
        user: Whose memories.
        agent: Of which agent.
        top_k: Most memories.
        threshold: Least score (sum of z-scores); None for the best ``top_k``, whatever their score.
    """

    name = "recall"
    description = "Looks up what is remembered of earlier conversations."
    inputs = {"query": {"type": "string", "description": "What to look for."}}  # noqa: RUF012
    output_type = "string"

    def __init__(
        self, llm: MemoryLLM, *, user: str, agent: str = "", top_k: int = 5, threshold: float | None = 1.0
    ) -> None:
        super().__init__()
        self._memories = llm.memories(user=user, agent=agent)
        self._top_k, self._threshold = top_k, threshold

    def forward(self, query: str) -> str:
        """The memories that are found, best first, a line each."""
        hits = self._memories.search(query, top_k=self._top_k, threshold=self._threshold)
        return "\n".join(f"- {hit.memory.text.strip()}" for hit in hits) or "Nothing is remembered about that."


def remember(llm: MemoryLLM, *, user: str, agent: str = "") -> dict[type[MemoryStep], Callable[..., None]]:
    """``step_callbacks`` of an agent: when a run ends, its task, what tools gave, and its answer become memories.

    For agents whose model is another than ``AgentMemModel``, which remembers by itself.
    """
    memories = llm.memories(user=user, agent=agent)

    def on_end(step: FinalAnswerStep, agent: Any) -> None:
        steps = agent.memory.steps
        begun = max(at for at, one in enumerate(steps) if isinstance(one, TaskStep))
        told = [(Role.USER, agent.task)]
        told += [(Role.TOOL, one.observations) for one in steps[begun:] if isinstance(one, ActionStep)]
        for role, text in [*told, (Role.ASSISTANT, step.output)]:
            if text is not None and str(text).strip():
                memories.add(str(text), role=role)

    return {FinalAnswerStep: on_end}
