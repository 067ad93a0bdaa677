"""The stories of all adapters, told by agents of Pydantic AI."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from pydantic_ai import Agent

from agentmem import MemoryLLM

from agentmem_contract import ModelStories
from pydantic_ai_agentmem_kv import AgentMemModel


class TestStories(ModelStories):
    folder = Path(__file__).parent.parent

    def say(self, llm: MemoryLLM, user: str, text: str) -> str:
        return Agent(AgentMemModel(llm, user=user)).run_sync(text).output

    def stream(self, llm: MemoryLLM, user: str, text: str) -> Iterator[str]:
        with Agent(AgentMemModel(llm, user=user)).run_stream_sync(text) as run:
            yield from run.stream_text(delta=True, debounce_by=None)

    def say_with_tool(self, llm: MemoryLLM, user: str, text: str, tool: Callable[[str], str]) -> str:
        agent = Agent(AgentMemModel(llm, user=user), tools=[tool])
        return agent.run_sync(text).output
