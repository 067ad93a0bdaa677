"""Agent frameworks with their own OpenAI clients, unmodified, against the server."""

from __future__ import annotations

import asyncio

import pytest
from agents import Agent, OpenAIChatCompletionsModel, OpenAIResponsesModel, Runner, function_tool, set_tracing_disabled
from agents import ModelSettings as AgentSettings
from openai import AsyncOpenAI
from pydantic import BaseModel
from pydantic_ai import Agent as PydanticAgent
from pydantic_ai import NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.models.openai import OpenAIResponsesModel as PydanticResponses
from pydantic_ai.providers.openai import OpenAIProvider
from server_world import Running

from agentmem import MemoryLLM, Scope

TOLD, ASKED, ANSWER = "My dog is called Biscuit.", "What is my dog called?", "Your dog is called Biscuit."


def texts(llm: MemoryLLM, user: str) -> list[str]:
    return [memory.text for memory in llm.store.scope(Scope(user=user)).list(sort="created_at")]


@pytest.fixture(autouse=True)
def _offline() -> None:
    set_tracing_disabled(True)


def client(server: Running, user: str) -> AsyncOpenAI:
    headers = {"X-Agentmem-User": user}
    return AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, default_headers=headers)


# ------------------------------------------------------------------------------------------------------ openai-agents


def test_openai_agents_sends_only_what_is_new(server: Running, llm: MemoryLLM) -> None:
    async def talk() -> tuple[str, str, str]:
        async with client(server, "agents") as openai:
            agent = Agent(name="a", model=OpenAIResponsesModel("bundled", openai))
            first = await Runner.run(agent, TOLD)
            second = await Runner.run(agent, ASKED, previous_response_id=first.last_response_id)
            later = Runner.run_streamed(agent, ASKED)  # another dialogue
            kinds = [event.type async for event in later.stream_events()]
            assert "raw_response_event" in kinds
            return first.final_output, second.final_output, later.final_output

    first, second, later = asyncio.run(talk())
    assert (second, later) == (ANSWER, ANSWER)
    assert texts(llm, "agents")[:4] == [TOLD, first, ASKED, ANSWER]


@pytest.mark.parametrize("kind", [OpenAIResponsesModel, OpenAIChatCompletionsModel])
def test_openai_agents_calls_tools(server: Running, kind: type, llm: MemoryLLM) -> None:
    called = []

    @function_tool
    def weather(city: str) -> str:
        """The weather in a city."""
        called.append(city)
        return "sunny"

    async def talk() -> str:
        async with client(server, f"agents {kind.__name__}") as openai:
            settings = AgentSettings(max_tokens=64)
            agent = Agent(name="a", model=kind("bundled", openai), tools=[weather], model_settings=settings)
            return (await Runner.run(agent, "What is the weather in Oslo?")).final_output

    assert "sunny" in asyncio.run(talk())
    assert called == ["Oslo"]
    assert "sunny" in texts(llm, f"agents {kind.__name__}")


# -------------------------------------------------------------------------------------------------------- pydantic-ai


class Dog(BaseModel):
    name: str


@pytest.mark.parametrize("kind", [OpenAIChatModel, PydanticResponses])
def test_pydantic_ai_remembers_across_its_runs(server: Running, kind: type, llm: MemoryLLM) -> None:
    user = f"pydantic {kind.__name__}"

    async def talk() -> tuple[str, str, str]:
        async with client(server, user) as openai:
            # The Responses API sends only what is new, when it is asked to; chat completions send all each time.
            options = {"openai_previous_response_id": "auto"} if kind is PydanticResponses else {}
            model = kind("bundled", provider=OpenAIProvider(openai_client=openai))
            agent = PydanticAgent(model, model_settings=options)
            first = await agent.run(TOLD)
            second = await agent.run(ASKED, message_history=first.all_messages())
            async with agent.run_stream(ASKED) as stream:  # another dialogue
                pieces = [piece async for piece in stream.stream_text(delta=True)]
            return first.output, second.output, "".join(pieces)

    first, second, later = asyncio.run(talk())
    assert (second, later) == (ANSWER, ANSWER)
    assert texts(llm, user).count(TOLD) == 1  # once, however often it was sent
    assert texts(llm, user)[:2] == [TOLD, first]


def test_pydantic_ai_has_typed_output(server: Running) -> None:
    async def talk() -> Dog:
        async with client(server, "pydantic typed") as openai:
            model = OpenAIChatModel("bundled", provider=OpenAIProvider(openai_client=openai))
            agent = PydanticAgent(model, output_type=NativeOutput(Dog), model_settings={"max_tokens": 64})
            return (await agent.run(ASKED)).output

    assert isinstance(asyncio.run(talk()).name, str)
