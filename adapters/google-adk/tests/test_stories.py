"""The stories of all adapters, told by ADK's runner and agents."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from uuid import uuid4

from running import APP, Bot, in_a_loop, make_agent, words

from agentmem import MemoryLLM

from agentmem_contract import ModelStories


class TestStories(ModelStories):
    folder = Path(__file__).parent.parent
    agent = APP

    def say(self, llm: MemoryLLM, user: str, text: str) -> str:
        return asyncio.run(Bot(make_agent(llm)).ask(user, text, uuid4().hex))

    def stream(self, llm: MemoryLLM, user: str, text: str) -> Iterator[str]:
        with closing(in_a_loop(Bot(make_agent(llm)).events(user, text, uuid4().hex, stream=True))) as events:
            for event in events:
                if event.partial:
                    yield words(event)

    def say_with_tool(self, llm: MemoryLLM, user: str, text: str, tool: Callable[[str], str]) -> str:
        return asyncio.run(Bot(make_agent(llm, tool)).ask(user, text))
