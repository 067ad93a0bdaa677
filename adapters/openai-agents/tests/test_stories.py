"""The stories of all adapters, told by the SDK's runner."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

from agents import Agent, RunConfig, Runner, function_tool

from agentmem import MemoryLLM

from agentmem_contract import ModelStories
from openai_agents_agentmem_kv import AgentMemProvider


def config(llm: MemoryLLM, user: str) -> RunConfig:
    return RunConfig(model_provider=AgentMemProvider(llm, user=user))


class TestStories(ModelStories):
    folder = Path(__file__).parent.parent

    def say(self, llm: MemoryLLM, user: str, text: str) -> str:
        return asyncio.run(Runner.run(Agent(name="bot"), text, run_config=config(llm, user))).final_output

    def stream(self, llm: MemoryLLM, user: str, text: str) -> Iterator[str]:
        """Closing it cancels the run, as whoever listens to one does."""
        with asyncio.Runner() as loop:
            run = loop.run(started(llm, user, text))
            events = run.stream_events()
            try:
                while (event := loop.run(following(events))) is not None:
                    if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
                        yield event.data.delta
            finally:
                run.cancel()
                loop.run(rest(events))

    def say_with_tool(self, llm: MemoryLLM, user: str, text: str, tool: Callable[[str], str]) -> str:
        agent = Agent(name="bot", tools=[function_tool(tool)])
        return asyncio.run(Runner.run(agent, text, run_config=config(llm, user))).final_output


async def started(llm, user, text):
    return Runner.run_streamed(Agent(name="bot"), text, run_config=config(llm, user))


async def following(events):
    return await anext(events, None)


async def rest(events):
    async for _ in events:
        pass
