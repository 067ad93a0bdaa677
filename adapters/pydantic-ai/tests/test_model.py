"""Agents on the bundled model: what is stored, tools, typed output, streaming, cancelling, bad input."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, BinaryContent, ModelRetry, ModelSettings, NativeOutput, RunContext, Tool, ToolOutput
from pydantic_ai.direct import model_request_sync
from pydantic_ai.exceptions import UnexpectedModelBehavior, UnsupportedSettingWarning, UserError
from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelResponse,
    PartDeltaEvent,
    SystemPromptPart,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.settings import ToolOrOutput

from agentmem import InvalidInput, MemoryLLM

from babbler import make_babbler
from pydantic_ai_agentmem_kv import AgentMemModel

TOLD = "My dog is called Biscuit."
ASKED = "What is my dog called?"
REQUIRED = ModelSettings(tool_choice="required")


class Weather(BaseModel):
    """How the weather is."""

    city: str
    unit: Literal["celsius"] | None


def weather(city: str) -> str:
    """The weather in a city."""
    return f"It rains in {city}."


def snow(city: str) -> str:
    """Whether it snows in a city."""
    return f"It does not snow in {city}."


def first(*names: str) -> Any:
    """Force a call of one of these until there is a result; then none of them is called."""

    def settings(ctx: RunContext[None]) -> ModelSettings:
        answered = any(isinstance(part, ToolReturnPart) for message in ctx.messages for part in message.parts)
        return ModelSettings(tool_choice="none" if answered else list(names))

    return settings


@pytest.fixture
def llm(tmp_path: Path) -> Iterator[MemoryLLM]:
    with MemoryLLM(store=tmp_path / "memory.db", window_tokens=900) as opened:
        yield opened


@pytest.fixture
def model(llm: MemoryLLM) -> AgentMemModel:
    return AgentMemModel(llm, user="ada")


def stored(llm: MemoryLLM) -> list[tuple[str, str]]:
    return [(str(m.role), m.text) for m in llm.memories(user="ada").list(sort="created_at")]


def test_a_history_that_is_sent_again_is_stored_once(llm: MemoryLLM, model: AgentMemModel) -> None:
    agent = Agent(model, instructions="Be brief.", system_prompt="You are kind.")
    told = agent.run_sync(TOLD)
    asked = agent.run_sync(ASKED, message_history=told.all_messages())
    assert "Biscuit" in asked.output
    assert [role for role, _ in stored(llm)] == ["user", "assistant", "user", "assistant"]
    sessions = {memory.scope.session for memory in llm.memories(user="ada").list()}
    assert sessions == {told.all_messages()[0].conversation_id}


def test_what_a_stream_said_is_known_when_it_is_sent_again(llm: MemoryLLM, model: AgentMemModel) -> None:
    with Agent(model).run_stream_sync(TOLD) as told:
        told.get_output()
    Agent(model).run_sync(ASKED, message_history=told.all_messages())
    assert [role for role, _ in stored(llm)] == ["user", "assistant", "user", "assistant"]


def test_the_answer_says_what_was_read(model: AgentMemModel) -> None:
    Agent(model).run_sync(TOLD)
    run = Agent(model).run_sync(ASKED)
    assert run.output == "Your dog is called Biscuit."
    details = run.response.provider_details
    assert TOLD in [memory["text"] for memory in details["memories"]]
    assert 0 < sum(memory["attention"] for memory in details["memories"]) < 1
    assert run.response.finish_reason == "stop"
    assert run.response.usage.cache_read_tokens > 0
    assert run.usage.input_tokens > run.usage.cache_read_tokens
    assert run.response.model_name == model.model_name


def test_what_is_not_to_be_remembered_is_not(llm: MemoryLLM) -> None:
    Agent(AgentMemModel(llm, user="ada", remember=False)).run_sync(TOLD)
    assert stored(llm) == []


def test_a_named_session_goes_on_after_a_restart(tmp_path: Path) -> None:
    for text in (TOLD, ASKED):
        with MemoryLLM(store=tmp_path / "memory.db") as llm:
            answer = Agent(AgentMemModel(llm, user="ada", session="monday")).run_sync(text).output
            sessions = {memory.scope.session for memory in llm.memories(user="ada").list()}
    assert answer == "Your dog is called Biscuit."
    assert sessions == {"monday"}


def test_settings_are_heard(llm: MemoryLLM, model: AgentMemModel) -> None:
    agent = Agent(model)
    agent.run_sync(TOLD)
    assert agent.run_sync(ASKED, model_settings={"stop_sequences": ["called"]}).output == "Your dog is"
    cut = Agent(AgentMemModel(llm, user="ada", settings={"max_tokens": 2})).run_sync(ASKED)
    assert cut.usage.output_tokens == 2
    assert cut.response.finish_reason == "length"
    forgetful = Agent(AgentMemModel(llm, user="ada", remember=False))
    wild: ModelSettings = {"temperature": 2.0, "top_p": 0.9, "top_k": 50, "seed": 7}
    assert len({forgetful.run_sync("Hello!", model_settings=wild).output for _ in range(2)}) == 1
    with pytest.raises(UnsupportedSettingWarning, match="timeout"):
        agent.run_sync(ASKED, model_settings={"timeout": 3.0})


def test_without_an_agent(llm: MemoryLLM, model: AgentMemModel) -> None:
    told = [ModelRequest.user_text_prompt(TOLD)]
    answer = model_request_sync(model, told)
    model_request_sync(model, [*told, answer, ModelRequest.user_text_prompt(ASKED, instructions="Be brief.")])
    assert [role for role, _ in stored(llm)] == ["user", "assistant", "user", "assistant"]


@pytest.mark.parametrize(
    "choice", ["required", ["weather"], ToolOrOutput(function_tools=["weather"])], ids=["any", "list", "or output"]
)
def test_a_call_can_be_forced(model: AgentMemModel, choice: Any) -> None:
    tools = [weather] if choice == "required" else [snow, weather]
    parameters = ModelRequestParameters(
        function_tools=[Tool(tool).tool_def for tool in tools],
        output_mode="tool",
        output_tools=[Tool(snow, name="final_result").tool_def] if choice == "required" else [],
        allow_text_output=choice != ToolOrOutput(function_tools=["weather"]),
    )
    asked: list[ModelMessage] = [ModelRequest.user_text_prompt("How is the weather in Lisbon?")]
    answer = model_request_sync(
        model, asked, model_settings={"tool_choice": choice}, model_request_parameters=parameters
    )
    (call,) = answer.tool_calls
    assert call.tool_name == "weather"
    assert call.args_as_dict() == {"city": "Lisbon"}
    assert answer.finish_reason == "tool_call"


def test_no_call_where_none_is_wanted(model: AgentMemModel) -> None:
    run = Agent(model, tools=[weather], model_settings={"tool_choice": "none"}).run_sync("Hello!")
    assert run.response.tool_calls == []
    with pytest.raises(UserError, match="'snow'"):
        Agent(model, tools=[weather], model_settings={"tool_choice": ["snow"]}).run_sync("Hello!")


def test_a_call_that_is_cut_off_is_text(model: AgentMemModel) -> None:
    agent = Agent(model, tools=[weather], model_settings=lambda ctx: {**REQUIRED, "max_tokens": 6})
    run = agent.run_sync("Hello!")
    assert run.output.startswith("<tool_call>")
    assert run.response.finish_reason == "length"


def test_typed_output_by_a_tool(model: AgentMemModel) -> None:
    run = Agent(model, output_type=Weather).run_sync("How is the weather in Lisbon?")
    assert run.output.city == "Lisbon"
    assert run.response.finish_reason == "tool_call"
    named = Agent(model, output_type=[ToolOutput(Weather, name="report"), ToolOutput(bool, name="rain")])
    assert isinstance(named.run_sync("How is the weather in Lisbon?").output, Weather | bool)


def test_typed_output_in_the_form_of_the_answer(model: AgentMemModel) -> None:
    run = Agent(model, output_type=NativeOutput(Weather)).run_sync("How is the weather in Lisbon?")
    assert run.output.city == "Lisbon"
    assert run.response.finish_reason == "stop"


def test_typed_output_after_a_tool(llm: MemoryLLM, model: AgentMemModel) -> None:
    agent = Agent(model, tools=[weather, snow], output_type=Weather)
    run = agent.run_sync("How is the weather in Lisbon?")
    assert run.output.city == "Lisbon"
    calls = [part.tool_name for m in run.all_messages() for part in m.parts if isinstance(part, ToolCallPart)]
    assert calls == ["weather", "final_result"]
    assert "It rains in Lisbon." in [text for role, text in stored(llm) if role == "tool"]


def test_typed_output_as_a_stream(model: AgentMemModel) -> None:
    with Agent(model, output_type=Weather).run_stream_sync("How is the weather in Lisbon?") as run:
        *_, last = run.stream_output(debounce_by=None)
    assert last.city == "Lisbon"
    assert run.usage.output_tokens > 0


async def test_a_stream_of_events_with_a_tool(model: AgentMemModel) -> None:
    agent = Agent(model, tools=[weather])
    kinds: list[str] = []
    words = ""
    async with agent.run_stream_events("How is the weather in Lisbon?") as events:
        async for event in events:
            kinds.append(event.event_kind)
            if isinstance(event, PartDeltaEvent):
                words += getattr(event.delta, "content_delta", "") or ""
    assert kinds.index("function_tool_call") < kinds.index("function_tool_result")
    assert kinds[-1] == "agent_run_result"
    assert "It rains in Lisbon." in words


def test_histories_of_tools_are_taken_and_remembered(llm: MemoryLLM, model: AgentMemModel) -> None:
    call = ToolCallPart("weather", '{"city": "Lisbon"}', tool_call_id="1")
    history: list[ModelMessage] = [
        ModelRequest([SystemPromptPart("Be brief."), UserPromptPart("How is the weather in Lisbon?")]),
        ModelResponse([ThinkingPart("They ask for the weather."), TextPart("I look."), call]),
        ModelRequest([ToolReturnPart("weather", "It rains.", tool_call_id="1")]),
        ModelResponse([TextPart("It rains."), ToolCallPart("unknown", "no JSON", tool_call_id="2")]),
        ModelRequest([ToolReturnPart("unknown", {"sure": True}, tool_call_id="2")]),
        ModelResponse([TextPart("Surely.")]),
        ModelRequest([ToolReturnPart("weather", b"\xff\x00", tool_call_id="orphan")]),
        ModelResponse([]),
    ]
    assert Agent(model).run_sync("Thank you.", message_history=history).output
    told = stored(llm)
    assert told[1] == ("assistant", 'I look.\nCalling weather with {"city": "Lisbon"}')
    assert ("tool", "It rains.") in told
    assert ("tool", '{"sure":true}') in told
    assert told[-2] == ("user", "Thank you.")


def _bytes() -> bytes:
    """Bytes."""
    return b"\xff\x00It rains."


def _nothing() -> None:
    """Nothing."""


@pytest.mark.parametrize("tool", [_bytes, _nothing])
def test_results_that_are_no_text(model: AgentMemModel, tool: Any) -> None:
    run = Agent(model, tools=[tool], model_settings=first(tool.__name__)).run_sync("How is the weather?")
    assert run.usage.tool_calls == 1


def test_a_result_of_a_megabyte(llm: MemoryLLM) -> None:
    def report() -> str:
        """All that is known of the weather."""
        return "It rains in Lisbon. " * 52_429

    agent = Agent(AgentMemModel(llm, user="ada", remember=False), tools=[report], model_settings=first("report"))
    run = agent.run_sync("How is the weather?")
    assert run.output
    assert "longer than the window" in run.response.provider_details["notes"][0]


def test_what_a_tool_refuses_is_told_to_the_model(llm: MemoryLLM, model: AgentMemModel) -> None:
    tried: list[str] = []

    def report(city: Literal["Lisbon", "Oslo"]) -> str:
        """The weather in a city."""
        tried.append(city)
        if len(tried) == 1:
            raise ModelRetry("The sensor sleeps. Ask again.")
        return "It rains."

    def twice(ctx: RunContext[None]) -> ModelSettings:
        return ModelSettings(tool_choice="required" if len(tried) < 2 else "none")

    assert Agent(model, tools=[report], model_settings=twice).run_sync("How is the weather?").output
    told = [text for role, text in stored(llm) if role == "tool"]
    assert len(tried) == 2
    assert "The sensor sleeps." in told[0]
    assert told[1] == "It rains."


def test_tools_that_are_none(model: AgentMemModel) -> None:
    def call() -> str:
        return "called"

    listed = Tool.from_schema(call, "call", "A list.", {"type": "array", "items": {"type": "string"}})
    with pytest.raises((UserError, InvalidInput)):
        Agent(model, tools=[listed]).run_sync("Hello!")
    with pytest.raises(UserError, match="weather"):
        Agent(model, tools=[Tool(weather), Tool(snow, name="weather")])


def test_a_schema_that_contains_itself(model: AgentMemModel) -> None:
    class Tree(BaseModel):
        name: Literal["leaf"]
        below: list[Tree]

    Tree.model_rebuild(_types_namespace={"Tree": Tree})
    with pytest.raises(UnexpectedModelBehavior):
        Agent(model, output_type=Tree).run_sync("Grow!", model_settings={"max_tokens": 12})


@pytest.mark.parametrize("prompt", [[BinaryContent(b"\x89PNG", media_type="image/png"), "Look!"], "a\x00b"])
def test_what_the_model_cannot_read_is_refused(llm: MemoryLLM, model: AgentMemModel, prompt: Any) -> None:
    with pytest.raises((UserError, InvalidInput)):
        Agent(model).run_sync(prompt)
    assert stored(llm) == []


async def test_two_agents_on_one_session_at_once(llm: MemoryLLM) -> None:
    agents = [Agent(AgentMemModel(llm, user="ada", session="monday")) for _ in range(2)]
    await asyncio.gather(
        *(agent.run(f"My {pet}.") for agent, pet in zip(agents, ("dog is Biscuit", "cat is Tom"), strict=True))
    )
    assert sorted(role for role, _ in stored(llm)) == ["assistant", "assistant", "user", "user"]


async def test_users_at_once(llm: MemoryLLM) -> None:
    agent: Agent[None, str] = Agent()
    users = {"ada": "Biscuit", "bob": "Bruno"}
    for user, dog in users.items():
        await agent.run(f"My dog is called {dog}.", model=AgentMemModel(llm, user=user))
    runs = await asyncio.gather(*(agent.run(ASKED, model=AgentMemModel(llm, user=user)) for user in users))
    assert [run.output.split()[-1] for run in runs] == ["Biscuit.", "Bruno."]


@pytest.fixture(scope="module")
def babbler(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_babbler(tmp_path_factory.mktemp("babbler"))


async def test_a_stream_that_is_cancelled_stops(tmp_path: Path, babbler: Path) -> None:
    with MemoryLLM(babbler, store=tmp_path / "memory.db", max_new_tokens=8000) as llm:
        heard: list[str] = []
        async with Agent(AgentMemModel(llm, user="ada")).run_stream("Go on and on.") as run:
            async for piece in run.stream_text(delta=True, debounce_by=None):
                heard.append(piece)
                if len(heard) == 5:
                    await run.cancel()
                    break
        (kept,) = llm.memories(user="ada").list(role="assistant")
        assert kept.text.startswith("".join(heard).strip())
        assert kept.n_tokens < 100
        assert run.response.state == "interrupted"


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_run_that_is_cancelled_stops(tmp_path: Path, babbler: Path, streamed: bool) -> None:
    with MemoryLLM(babbler, store=tmp_path / "memory.db", max_new_tokens=8000) as llm:
        agent = Agent(AgentMemModel(llm, user="ada"))
        begun = asyncio.Event()

        async def listen() -> None:
            async with agent.run_stream("Go on and on.") as run:
                async for _ in run.stream_text(delta=True, debounce_by=None):
                    begun.set()

        task = asyncio.create_task(listen() if streamed else agent.run("Go on and on."))
        await asyncio.wait_for(begun.wait(), 60) if streamed else await asyncio.sleep(1.5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        kept = llm.memories(user="ada").list(role="assistant", limit=1000)
        assert 0 < sum(memory.n_tokens for memory in kept) < 7000
