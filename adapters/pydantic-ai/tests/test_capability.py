"""The capability in real agents: what is put before the model, and what is kept of a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic_ai import Agent, RunContext
from pydantic_ai.capabilities import Hooks
from pydantic_ai.messages import ModelMessage, ModelRequest, UserPromptPart
from pydantic_ai.models import ModelRequestContext

from agentmem import MemoryLLM

from pydantic_ai_agentmem_kv import AgentMemCapability, AgentMemModel

TOLD = "My dog is called Biscuit."
ASKED = "What is my dog called?"


@pytest.fixture
def llm(tmp_path: Path) -> Iterator[MemoryLLM]:
    with MemoryLLM(store=tmp_path / "memory.db") as opened:
        yield opened


class Bot:
    """An agent whose model has no memory of its own; ``prompts`` are the newest prompts that it was given."""

    def __init__(self, llm: MemoryLLM, user: str, **more: Any):
        self.prompts: list[list[str]] = []
        hooks: Hooks[None] = Hooks()

        @hooks.on.before_model_request
        async def look(ctx: RunContext[None], request_context: ModelRequestContext) -> ModelRequestContext:
            self.prompts.append(prompts(request_context.messages))
            return request_context

        model = AgentMemModel(llm, user="nobody", remember=False)
        self.agent = Agent(model, capabilities=[AgentMemCapability(llm, user=user), hooks], **more)


def prompts(messages: list[ModelMessage]) -> list[str]:
    requests = [message for message in messages if isinstance(message, ModelRequest)]
    asked = [[part.content for part in message.parts if isinstance(part, UserPromptPart)] for message in requests]
    return next(found for found in reversed(asked) if found)


def test_what_was_said_is_recalled_in_another_run(llm: MemoryLLM) -> None:
    Bot(llm, "ada").agent.run_sync(TOLD)
    bot = Bot(llm, "ada", instructions="Be brief.")
    run = bot.agent.run_sync(ASKED)
    ((recalled, asked),) = bot.prompts
    assert recalled.startswith("What you remember")
    assert f"- {TOLD}" in recalled
    assert asked == ASKED
    assert prompts(run.all_messages()) == [ASKED]
    assert [m.role for m in llm.memories(user="ada").list(sort="created_at")] == ["user", "assistant"] * 2


def test_users_are_apart_and_nothing_is_said_of_nothing(llm: MemoryLLM) -> None:
    Bot(llm, "ada").agent.run_sync(TOLD)
    bob = Bot(llm, "bob")
    bob.agent.run_sync(ASKED)
    assert bob.prompts == [[ASKED]]


def test_what_the_dialogue_shows_is_neither_recalled_nor_kept_twice(llm: MemoryLLM) -> None:
    bot = Bot(llm, "ada")
    history: list[ModelMessage] = []
    for text in (TOLD, ASKED, "Thank you."):
        history = bot.agent.run_sync(text, message_history=history).all_messages()
    assert bot.prompts == [[TOLD], [ASKED], ["Thank you."]]
    assert len(llm.memories(user="ada")) == 6


def test_one_agent_for_several_users(llm: MemoryLLM) -> None:
    agent = Agent(AgentMemModel(llm, user="nobody", remember=False))
    for user, dog in {"ada": "Biscuit", "bob": "Bruno"}.items():
        agent.run_sync(f"My dog is called {dog}.", capabilities=[AgentMemCapability(llm, user=user)])
    assert [m.text for m in llm.memories(user="bob").list(role="user")] == ["My dog is called Bruno."]


def test_a_run_with_a_tool_recalls_for_its_prompt_each_time(llm: MemoryLLM) -> None:
    def weather(city: str) -> str:
        """The weather in a city."""
        return f"It rains in {city}."

    llm.memories(user="ada").add("In Lisbon I always forget my umbrella.")
    bot = Bot(llm, "ada", tools=[weather])
    bot.agent.run_sync("How is the weather in Lisbon?")
    assert len(bot.prompts) == 2
    assert all("umbrella" in recalled for recalled, _ in bot.prompts)
    assert "It rains in Lisbon." not in [memory.text for memory in llm.memories(user="ada").list()]


async def test_in_an_event_loop_and_as_a_stream(llm: MemoryLLM) -> None:
    bot = Bot(llm, "ada")
    await bot.agent.run(TOLD)
    async with bot.agent.run_stream(ASKED) as run:
        answer = await run.get_output()
    assert TOLD in bot.prompts[1][0]
    assert [m.text for m in llm.memories(user="ada").list(role="assistant", limit=1)] == [answer]
