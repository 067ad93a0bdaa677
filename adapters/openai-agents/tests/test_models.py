"""The model in real runs: tools, handoffs, forms, streams, stored dialogues, cancelling, bad input."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from agents import Agent, FunctionTool, ModelSettings, ModelTracing, RunConfig, Runner, UserError, function_tool
from pydantic import BaseModel

from agentmem import InvalidInput, MemoryLLM, NotFound

from agentmem_contract import python
from babbler import make_babbler
from openai_agents_agentmem_kv import AgentMemModel, AgentMemProvider, AgentMemSession

TOLD = "My dog is called Biscuit."
ASKED = "What is my dog called?"
WEATHER = "How is the weather in Lisbon?"
OFF = ModelTracing.DISABLED
FORCED = ModelSettings(tool_choice="required")


@function_tool
def weather(city: str) -> str:
    """The weather in a city."""
    return f"It rains in {city}."


class Rain(BaseModel):
    city: str
    sure: bool


@pytest.fixture
def config(llm: MemoryLLM) -> RunConfig:
    return RunConfig(model_provider=AgentMemProvider(llm, user="ada"))


@pytest.fixture
def babbling(tmp_path: Path) -> Iterator[MemoryLLM]:
    with MemoryLLM(make_babbler(tmp_path / "model"), store=tmp_path / "babble.db", max_new_tokens=8000) as opened:
        yield opened


def stored(llm: MemoryLLM) -> list[tuple[str, str]]:
    return [(str(m.role), m.text) for m in llm.memories(user="ada").list(sort="created_at")]


def turns(llm: MemoryLLM) -> dict[str, str]:
    """Who spoke each turn that is remembered, in order."""
    return {memory.turn: str(memory.role) for memory in llm.memories(user="ada").list(sort="created_at", limit=1000)}


def kinds(items: list[Any]) -> list[str]:
    return [item.get("type") if item.get("type", "message") != "message" else item["role"] for item in items]


async def test_a_dialogue_that_is_sent_again_is_stored_once(llm: MemoryLLM, config: RunConfig) -> None:
    session = AgentMemSession("monday", llm, user="ada")
    await Runner.run(Agent(name="bot", instructions="Be brief."), TOLD, session=session, run_config=config)
    answer = await Runner.run(Agent(name="bot"), ASKED, session=session, run_config=config)
    assert answer.final_output == "Your dog is called Biscuit."
    assert [role for role, _ in stored(llm)] == ["user", "assistant"] * 2
    assert len({memory.scope.session for memory in llm.memories(user="ada").list()}) == 1


async def test_usage_says_what_was_read_from_memory(config: RunConfig) -> None:
    await Runner.run(Agent(name="bot"), TOLD, run_config=config)
    for answer in (
        await Runner.run(Agent(name="bot"), ASKED, run_config=config),
        await streamed(Agent(name="bot"), ASKED, run_config=config),
    ):
        usage = answer.context_wrapper.usage
        assert answer.final_output == "Your dog is called Biscuit."
        assert 0 < usage.input_tokens_details.cached_tokens < usage.input_tokens
        assert usage.total_tokens == usage.input_tokens + usage.output_tokens
        assert usage.requests == 1


async def streamed(*args: Any, **more: Any) -> Any:
    run = Runner.run_streamed(*args, **more)
    async for _ in run.stream_events():
        pass
    return run


@pytest.mark.parametrize("run", [Runner.run, streamed])
async def test_a_tool_is_called_once_and_answered(llm: MemoryLLM, config: RunConfig, run: Any) -> None:
    session = AgentMemSession("monday", llm, user="ada")
    agent = Agent(name="bot", instructions="Be brief.", tools=[weather])
    answer = await run(agent, WEATHER, session=session, run_config=config)
    assert "It rains in Lisbon." in answer.final_output
    assert kinds(await session.get_items()) == ["user", "function_call", "function_call_output", "assistant"]
    texts = [text for _, text in stored(llm)]
    assert texts[:3] == [WEATHER, 'Calling weather with {"city": "Lisbon"}', "It rains in Lisbon."]
    assert len(texts) == 4


@pytest.mark.parametrize("run", [Runner.run, streamed])
async def test_an_agent_hands_over_to_another(config: RunConfig, run: Any) -> None:
    billing = Agent(name="billing", instructions="You look after bills.")
    triage = Agent(name="triage", handoffs=[billing], tools=[weather])
    answer = await run(triage, "I want to talk to billing.", run_config=config)
    assert answer.last_agent is billing
    assert answer.final_output


@pytest.mark.parametrize("run", [Runner.run, streamed])
async def test_the_answer_has_the_type_that_is_asked_for(config: RunConfig, run: Any) -> None:
    answer = await run(Agent(name="bot", output_type=Rain), WEATHER, run_config=config)
    assert isinstance(answer.final_output, Rain)


async def test_a_response_can_be_gone_on_from(llm: MemoryLLM, config: RunConfig) -> None:
    first = await Runner.run(Agent(name="bot"), TOLD, run_config=config)
    for run in (Runner.run, streamed):
        answer = await run(Agent(name="bot"), ASKED, previous_response_id=first.last_response_id, run_config=config)
        assert answer.final_output == "Your dog is called Biscuit."
    agent = Agent(name="bot", tools=[weather])
    await Runner.run(agent, WEATHER, auto_previous_response_id=True, run_config=config)
    assert [text for role, text in stored(llm) if role == "tool"] == ["It rains in Lisbon."]
    assert len({m.scope.session for m in llm.memories(user="ada").list() if m.text == TOLD or m.text == ASKED}) == 1
    with pytest.raises(NotFound):
        await Runner.run(Agent(name="bot"), ASKED, previous_response_id="monday/none", run_config=config)


async def test_options_are_heard(llm: MemoryLLM, config: RunConfig) -> None:
    async def say(**options: Any) -> str:
        model = AgentMemModel(llm, user="ada", remember=False)
        agent = Agent(name="bot", model=model, model_settings=ModelSettings(**options))
        return (await Runner.run(agent, ASKED)).final_output

    await Runner.run(Agent(name="bot"), TOLD, run_config=config)
    assert await say() == "Your dog is called Biscuit."
    assert await say(extra_args={"stop": ["called"]}) == "Your dog is"
    assert await say(max_tokens=2) == "Your dog"
    wild = {"temperature": 2.0, "top_p": 0.9, "extra_args": {"seed": 7}}
    assert await say(**wild) == await say(**wild)
    assert await say(tool_choice="none") == "Your dog is called Biscuit."
    assert len(stored(llm)) == 2
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
        await say(extra_args={"colour": "red"})


def test_the_provider_has_one_model(llm: MemoryLLM) -> None:
    provider = AgentMemProvider(llm, user="ada")
    assert provider.get_model(None) is provider.get_model("bundled")
    with pytest.raises(UserError, match="no model 'gpt-5'"):
        provider.get_model("gpt-5")


SESSION = """
import asyncio, sys
from agents import Agent, RunConfig, Runner
from agentmem import MemoryLLM
from openai_agents_agentmem_kv import AgentMemProvider, AgentMemSession

path, text = sys.argv[1:]
with MemoryLLM(store=path) as llm:
    config = RunConfig(model_provider=AgentMemProvider(llm, user="ada"))
    session = AgentMemSession("one", llm, user="ada")
    print(asyncio.run(Runner.run(Agent(name="bot"), text, session=session, run_config=config)).final_output)
    print(len(asyncio.run(session.get_items())), len(llm.memories(user="ada")))
"""


def test_a_session_goes_on_in_another_process(tmp_path: Path) -> None:
    script, store = tmp_path / "talk.py", tmp_path / "memory.db"
    script.write_text(SESSION, "utf-8")
    assert python(script, store, TOLD).endswith("\n2 2")
    assert python(script, store, ASKED) == "Your dog is called Biscuit.\n4 4"


# ------------------------------------------------------------------------------------------ cancelling, several at once


async def test_a_run_that_is_cancelled_stops_and_can_be_sent_again(babbling: MemoryLLM) -> None:
    agent = Agent(name="bot", model=AgentMemModel(babbling, user="ada"))
    session = AgentMemSession("monday", babbling, user="ada")
    task = asyncio.create_task(Runner.run(agent, "Go on and on.", session=session))
    await asyncio.sleep(2)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert list(turns(babbling).values()) == ["user", "assistant"]  # what was said until then
    before = await session.get_items()
    agent.model_settings = ModelSettings(max_tokens=5)
    await Runner.run(agent, "Go on and on.", session=session)
    items = await session.get_items()
    assert items[: len(before)] == before
    assert kinds(items)[len(before) :] == ["user", "assistant"]
    assert list(turns(babbling).values()) == ["user", "assistant"] * 2


async def test_a_run_within_a_tool_of_a_run(llm: MemoryLLM, config: RunConfig) -> None:
    session = AgentMemSession("monday", llm, user="ada")

    @function_tool
    async def ask(city: str) -> str:
        """Ask somebody else."""
        return (
            await Runner.run(Agent(name="inner"), f"I live in {city}.", session=session, run_config=config)
        ).final_output

    agent = Agent(name="outer", tools=[ask], model_settings=FORCED)
    await asyncio.wait_for(Runner.run(agent, WEATHER, session=session, run_config=config), 60)
    found = kinds(await session.get_items())
    assert sorted(found) == sorted(["user", "user", "assistant", "function_call", "function_call_output", "assistant"])


async def test_two_agents_on_one_session_at_once(llm: MemoryLLM, config: RunConfig) -> None:
    names = ["Biscuit", "Rex", "Bruno"]

    async def tell(name: str) -> None:
        session = AgentMemSession("monday", llm, user="ada")
        await Runner.run(Agent(name="bot"), f"A dog is called {name}.", session=session, run_config=config)

    await asyncio.gather(*map(tell, names))
    items = await AgentMemSession("monday", llm, user="ada").get_items()
    heard = [item["content"] for item in items if item["role"] == "user"]
    assert sorted(heard) == sorted(f"A dog is called {name}." for name in names)
    assert len(items) == 6
    assert sorted(text for role, text in stored(llm) if role == "user") == sorted(heard)


# ------------------------------------------------------------------------------------------------------------ bad input


async def never(context: Any, arguments: str) -> str:
    raise AssertionError("no tool is called")


def odd(schema: dict[str, Any], name: str = "odd") -> FunctionTool:
    return FunctionTool(name, "Odd.", schema, never, strict_json_schema=False)


@pytest.mark.parametrize(
    "tools", [[odd({"type": "string"})], [odd({"properties": []})], [odd({}), odd({})], [odd({}, "no name")]]
)
async def test_tools_that_are_none_are_refused(llm: MemoryLLM, tools: list[Any]) -> None:
    with pytest.raises(InvalidInput):
        await AgentMemModel(llm, user="ada").get_response(None, ASKED, ModelSettings(), tools, None, [], OFF)
    assert stored(llm) == []


async def test_of_tools_of_one_name_the_runner_offers_one(config: RunConfig) -> None:
    agent = Agent(name="bot", tools=[odd({}, "weather"), weather], model_settings=FORCED)
    answer = await Runner.run(agent, WEATHER, run_config=config)
    assert [item.output for item in answer.new_items if item.type == "tool_call_output_item"] == ["It rains in Lisbon."]


CALL = {"type": "function_call", "call_id": "1", "name": "gone", "arguments": '{"city": 7}'}
GIVEN = {"type": "function_call_output", "call_id": "1", "output": "It rains."}
ORPHAN = {"type": "function_call_output", "call_id": "2", "output": ""}


async def test_histories_of_other_models_and_tools_are_taken(llm: MemoryLLM) -> None:
    said = [
        {"role": "user", "content": [{"type": "input_text", "text": WEATHER}]},
        {"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": "They ask."}]},
        CALL,
        GIVEN,
        ORPHAN,
        {"role": "assistant", "type": "message", "id": "m", "content": [{"type": "refusal", "refusal": "I will not."}]},
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "Thank you."},
    ]
    model = AgentMemModel(llm, user="ada")
    answer = await model.get_response(None, said, ModelSettings(), [], None, [], OFF)
    assert answer.output
    roles = [role for role, _ in stored(llm)]
    assert roles == ["user", "assistant", "tool", "tool", "assistant", "user", "assistant"]
    texts = [text for _, text in stored(llm)]
    assert texts[1:5] == ['Calling gone with {"city": 7}', "It rains.", "(nothing)", "I will not."]


@pytest.mark.parametrize(
    "given",
    [
        [],
        "",
        "a\0b",
        [
            {
                "role": "user",
                "content": [{"type": "input_image", "image_url": "data:image/png;base64,AAAA", "detail": "auto"}],
            }
        ],
        [CALL | {"arguments": "[1]"}],
        [CALL | {"arguments": '{"city": '}],
        [CALL, GIVEN | {"output": b"\xff"}],
    ],
)
async def test_what_the_model_cannot_read_is_refused(llm: MemoryLLM, given: Any) -> None:
    model = AgentMemModel(llm, user="ada")
    with pytest.raises((InvalidInput, UserError)):
        await model.get_response(None, given, ModelSettings(), [], None, [], OFF)
    assert stored(llm) == []


async def test_what_a_tool_gives_is_text_whatever_it_is(llm: MemoryLLM, config: RunConfig) -> None:
    @function_tool
    def raw(city: str) -> bytes:
        """The weather as bytes."""
        return b"\xffrain"

    agent = Agent(name="bot", tools=[raw], model_settings=FORCED)
    await Runner.run(agent, WEATHER, run_config=config)
    assert [text for role, text in stored(llm) if role == "tool"] == [r"b'\xffrain'"]


async def test_what_only_openai_has_is_refused(llm: MemoryLLM, config: RunConfig) -> None:
    with pytest.raises(UserError, match="use a session"):
        await Runner.run(Agent(name="bot"), ASKED, conversation_id="conv_1", run_config=config)
    with pytest.raises(UserError, match="use a session"):
        await streamed(Agent(name="bot", prompt={"id": "p"}), ASKED, run_config=config)
    assert stored(llm) == []


async def test_a_call_that_is_cut_off_is_text(config: RunConfig) -> None:
    cut = ModelSettings(tool_choice="required", max_tokens=6)
    answer = await Runner.run(Agent(name="bot", tools=[weather], model_settings=cut), WEATHER, run_config=config)
    assert answer.final_output.startswith("<tool_call>")


def test_tracing_is_off(config: RunConfig) -> None:
    from agents.tracing import get_trace_provider, trace

    with trace("a run") as run:
        assert run.trace_id == "no-op"
    assert get_trace_provider().create_trace("another").export() is None
