"""The stories of all adapters, told by LlamaIndex's function agent and LLM."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import get_type_hints

from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage

from agentmem import MemoryLLM

from agentmem_contract import ModelStories
from llama_index.llms.agentmem_kv import AgentMem


class TestStories(ModelStories):
    folder = Path(__file__).parent.parent
    # Workflows look at all attributes of an agent, deprecated ones of pydantic included.
    ignore = ("The `__fields", "Accessing the 'model_")

    def run(self, llm: MemoryLLM, user: str, text: str, **more: object) -> str:
        async def answer() -> str:
            return str(await FunctionAgent(llm=AgentMem(llm=llm, user=user), **more).run(text))

        return asyncio.run(answer())

    def say(self, llm: MemoryLLM, user: str, text: str) -> str:
        return self.run(llm, user, text)

    def stream(self, llm: MemoryLLM, user: str, text: str) -> Iterator[str]:
        with closing(AgentMem(llm=llm, user=user).stream_chat([ChatMessage(text)])) as responses:
            for response in responses:
                yield response.delta

    def say_with_tool(self, llm: MemoryLLM, user: str, text: str, tool: Callable[[str], str]) -> str:
        tool.__annotations__ = get_type_hints(tool)  # LlamaIndex takes annotations as they are, text or not
        return self.run(llm, user, text, tools=[tool])
