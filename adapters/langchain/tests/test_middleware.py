"""The middleware in real agents: what is put before the model, and what is kept of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import ModelRequest, ModelResponse, wrap_model_call
from langgraph.checkpoint.memory import InMemorySaver

from agentmem import MemoryLLM

from langchain_agentmem_kv import AgentMemMiddleware, ChatAgentMem

TOLD = "My dog is called Biscuit."


@pytest.fixture
def llm(tmp_path: Path) -> Iterator[MemoryLLM]:
    with MemoryLLM(store=tmp_path / "memory.db") as opened:
        yield opened


class Bot:
    """An agent whose model has no memory of its own; ``prompts`` are the system prompts that it was given."""

    def __init__(self, llm: MemoryLLM, user: str, **more: Any):
        self.prompts: list[str | None] = []

        @wrap_model_call
        def look(request: ModelRequest, handler: Callable[[ModelRequest], ModelResponse]) -> ModelResponse:
            self.prompts.append(request.system_prompt)
            return handler(request)

        model = ChatAgentMem(llm=llm, user="nobody", remember=False)
        self.middleware = AgentMemMiddleware(llm, user=user)
        self.agent = create_agent(model, middleware=[self.middleware, look], **more)

    def say(self, text: str, **more: Any) -> str:
        return self.agent.invoke({"messages": [("user", text)]}, **more)["messages"][-1].text


def test_what_was_said_is_recalled_in_another_run(llm: MemoryLLM) -> None:
    Bot(llm, "ada").say(TOLD)
    bot = Bot(llm, "ada", system_prompt="Be brief.")
    bot.say("What is my dog called?")
    assert bot.prompts[0].startswith("Be brief.\n\nWhat you remember")
    assert f"- {TOLD}" in bot.prompts[0]
    assert [m.role for m in llm.memories(user="ada").list(sort="created_at")] == ["user", "assistant"] * 2


def test_users_are_apart_and_nothing_is_said_of_nothing(llm: MemoryLLM) -> None:
    Bot(llm, "ada").say(TOLD)
    bob = Bot(llm, "bob")
    bob.say("What is my dog called?")
    assert bob.prompts == [None]


def test_what_the_dialogue_shows_is_neither_recalled_nor_kept_twice(llm: MemoryLLM) -> None:
    bot = Bot(llm, "ada", checkpointer=InMemorySaver())
    thread = {"configurable": {"thread_id": "monday"}}
    for text in (TOLD, "What is my dog called?", "Thank you."):
        bot.say(text, config=thread)
    assert bot.prompts == [None, None, None]
    assert len(llm.memories(user="ada")) == 6


async def test_in_an_event_loop(llm: MemoryLLM) -> None:
    agent = create_agent(
        ChatAgentMem(llm=llm, user="nobody", remember=False), middleware=[AgentMemMiddleware(llm, user="ada")]
    )
    for text in (TOLD, "What is my dog called?"):
        answer = await agent.ainvoke({"messages": [("user", text)]})
    assert answer["messages"][-1].text
    assert len(llm.memories(user="ada")) == 4
