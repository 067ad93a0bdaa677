"""The stories of all adapters, told by LangChain's agent and chat model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from langchain.agents import create_agent
from langchain.agents.middleware import ModelRequest, ModelResponse, wrap_model_call

from agentmem import MemoryLLM

from agentmem_contract import City, ModelStories
from langchain_agentmem_kv import ChatAgentMem


@wrap_model_call
def call_a_tool_first(request: ModelRequest, handler: Callable[[ModelRequest], ModelResponse]) -> ModelResponse:
    """Force a call until there is a result."""
    waiting = request.messages[-1].type == "human"
    return handler(request.override(tool_choice="any" if waiting else None))


class TestStories(ModelStories):
    folder = Path(__file__).parent.parent

    def say(self, llm: MemoryLLM, user: str, text: str) -> str:
        return (
            create_agent(ChatAgentMem(llm=llm, user=user)).invoke({"messages": [("user", text)]})["messages"][-1].text
        )

    def stream(self, llm: MemoryLLM, user: str, text: str) -> Iterator[str]:
        for chunk in ChatAgentMem(llm=llm, user=user).stream(text):
            yield chunk.text

    def say_with_tool(self, llm: MemoryLLM, user: str, text: str, tool: Callable[[City], str]) -> str:
        agent = create_agent(ChatAgentMem(llm=llm, user=user), [tool], middleware=[call_a_tool_first])
        return agent.invoke({"messages": [("user", text)]})["messages"][-1].text
