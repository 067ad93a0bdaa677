"""AgentMemCapability: memory for agents of any model, as words in front of the question."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic_ai import AgentRunResult, RunContext
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextContent, UserPromptPart
from pydantic_ai.models import ModelRequestContext

from agentmem import MemoryLLM, Role

HEAD = "What you remember of earlier conversations, which may or may not matter now:"


@dataclass
class AgentMemCapability(AbstractCapability[Any]):
    """Recall before each request to the model, remember after each run.

    For agents whose model is another than ``AgentMemModel``, which needs neither: it reads memory by attention. What is
    recalled was said by people and is no instruction: it goes in front of the newest prompt, in that request only.

    Args:
        llm: An open ``MemoryLLM``, whose model only embeds; close it yourself.
        user: Whose memory is read and written.
        agent: Of which agent.
        k: Most memories in a prompt.
        threshold: Least score (sum of z-scores) of what is recalled; None for the best ``k``.
    """

    llm: MemoryLLM
    user: str
    agent: str = ""
    k: int = 8
    threshold: float | None = 1.0

    @classmethod
    def get_serialization_name(cls) -> None:
        """Not from a specification: it holds an open ``MemoryLLM``."""

    async def before_model_request(
        self, ctx: RunContext[Any], request_context: ModelRequestContext
    ) -> ModelRequestContext:
        """Put what the newest prompt recalls in front of it."""
        messages = request_context.messages
        for at in range(len(messages) - 1, -1, -1):
            message = messages[at]
            if isinstance(message, ModelRequest) and (question := _words(message)):
                if lines := await asyncio.to_thread(self._recalled, question, messages):
                    parts = [UserPromptPart(f"{HEAD}\n{lines}"), *message.parts]
                    messages = [*messages[:at], replace(message, parts=parts), *messages[at + 1 :]]
                    return replace(request_context, messages=messages)
                break
        return request_context

    async def after_run(self, ctx: RunContext[Any], *, result: AgentRunResult[Any]) -> AgentRunResult[Any]:
        """Remember what was said in the run."""
        await asyncio.to_thread(self._remember, result.new_messages())
        return result

    def _recalled(self, question: str, messages: Sequence[ModelMessage]) -> str:
        shown = {id for _, _, id in _turns(messages)}
        hits = self.llm.memories(user=self.user, agent=self.agent).search(
            question, top_k=self.k, threshold=self.threshold, exclude=shown
        )
        return "\n".join(f"- {hit.memory.text.strip()}" for hit in hits)

    def _remember(self, messages: Sequence[ModelMessage]) -> None:
        memories = self.llm.memories(user=self.user, agent=self.agent)
        for role, text, id in _turns(messages):
            memories.add(text, id=id, role=role)


def _turns(messages: Sequence[ModelMessage]) -> Iterator[tuple[Role, str, str]]:
    """What was said, with the ids of its turns: made of what a message keeps when it is sent again."""
    for message in messages:
        role = Role.USER if isinstance(message, ModelRequest) else Role.ASSISTANT
        if text := _words(message):
            made = f"{message.run_id}\x00{role}\x00{text}"
            yield role, text, hashlib.sha256(made.encode()).hexdigest()[:32]


def _words(message: ModelMessage) -> str:
    """What a user or the model says in a message; nothing of files, tools and thoughts."""
    if isinstance(message, ModelResponse):
        return (message.text or "").strip()
    texts: list[str] = []
    for part in message.parts:
        if isinstance(part, UserPromptPart):
            items = [part.content] if isinstance(part.content, str) else part.content
            texts += [
                item.content if isinstance(item, TextContent) else item
                for item in items
                if isinstance(item, str | TextContent)
            ]
    return "\n".join(texts).strip()
