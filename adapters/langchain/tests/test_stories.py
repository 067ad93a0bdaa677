"""The stories of all adapters, told by LangChain's agent and chat model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from langchain.agents import create_agent

from agentmem import MemoryLLM

from agentmem_contract import ModelStories
from langchain_agentmem_kv import ChatAgentMem


class TestStories(ModelStories):
    folder = Path(__file__).parent.parent

    def say(self, llm: MemoryLLM, user: str, text: str) -> str:
        return (
            create_agent(ChatAgentMem(llm=llm, user=user)).invoke({"messages": [("user", text)]})["messages"][-1].text
        )

    def stream(self, llm: MemoryLLM, user: str, text: str) -> Iterator[str]:
        for chunk in ChatAgentMem(llm=llm, user=user).stream(text):
            yield chunk.text

    def say_with_tool(self, llm: MemoryLLM, user: str, text: str, tool: Callable[[str], str]) -> str:
        agent = create_agent(ChatAgentMem(llm=llm, user=user), [tool])
        return agent.invoke({"messages": [("user", text)]})["messages"][-1].text
