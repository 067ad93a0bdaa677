"""The stories of all adapters, told by agents of Pydantic AI."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from pydantic_ai import Agent, ModelSettings, RunContext
from pydantic_ai.messages import ToolReturnPart

from agentmem import MemoryLLM

from agentmem_contract import City, ModelStories
from pydantic_ai_agentmem_kv import AgentMemModel


def call_a_tool_first(ctx: RunContext[None]) -> ModelSettings:
    """Force a call until there is a result."""
    answered = any(isinstance(part, ToolReturnPart) for message in ctx.messages for part in message.parts)
    return ModelSettings() if answered else ModelSettings(tool_choice="required")


class TestStories(ModelStories):
    folder = Path(__file__).parent.parent

    def say(self, llm: MemoryLLM, user: str, text: str) -> str:
        return Agent(AgentMemModel(llm, user=user)).run_sync(text).output

    def stream(self, llm: MemoryLLM, user: str, text: str) -> Iterator[str]:
        with Agent(AgentMemModel(llm, user=user)).run_stream_sync(text) as run:
            yield from run.stream_text(delta=True, debounce_by=None)

    def say_with_tool(self, llm: MemoryLLM, user: str, text: str, tool: Callable[[City], str]) -> str:
        agent = Agent(AgentMemModel(llm, user=user), tools=[tool], model_settings=call_a_tool_first)
        return agent.run_sync(text).output
