"""The stories of all adapters, told by smolagents' tool-calling agent and the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from smolagents import ToolCallingAgent

from agentmem import MemoryLLM

from agentmem_contract import ModelStories
from forced import Weather
from smolagents_agentmem_kv import SHORT_PROMPTS, AgentMemModel


def run(model: AgentMemModel, text: str, *tools: Weather) -> str:
    agent = ToolCallingAgent(list(tools), model, prompt_templates=SHORT_PROMPTS, verbosity_level=0, max_steps=3)
    return str(agent.run(text))


class TestStories(ModelStories):
    folder = Path(__file__).parent.parent

    def say(self, llm: MemoryLLM, user: str, text: str) -> str:
        return run(AgentMemModel(llm, user=user), text)

    def stream(self, llm: MemoryLLM, user: str, text: str) -> Iterator[str]:
        with closing(AgentMemModel(llm, user=user).generate_stream([{"role": "user", "content": text}])) as deltas:
            for delta in deltas:
                yield delta.content or ""

    def say_with_tool(self, llm: MemoryLLM, user: str, text: str, tool: Callable[[str], str]) -> str:
        return run(AgentMemModel(llm, user=user), text, Weather(tool))
