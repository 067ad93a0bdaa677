"""The model in real runs: whose memory, tools, forms, options, streams that are left, bad input."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any, Literal

import pytest
from google.adk.agents import LlmAgent
from google.adk.models.llm_request import LlmRequest
from google.adk.models.llm_response import LlmResponse
from google.adk.tools import FunctionTool
from google.genai import types
from pydantic import BaseModel
from running import APP, Bot, make_agent, words

from agentmem import InvalidInput, MemoryLLM

from babbler import make_babbler
from google_adk_agentmem_kv import AgentMemLlm

TOLD = "My dog is called Biscuit."
ASKED = "What is my dog called?"
ANSWER = "Your dog is called Biscuit."
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


@pytest.fixture
def babbler(tmp_path: Path) -> Iterator[MemoryLLM]:
    with MemoryLLM(make_babbler(tmp_path / "model"), store=tmp_path / "long.db", max_new_tokens=8000) as llm:
        yield llm


def stored(llm: MemoryLLM, user: str = "ada", agent: str = APP) -> list[tuple[str, str]]:
    return [(str(m.role), m.text) for m in llm.memories(user=user, agent=agent).list(sort="created_at")]


def tool(answer: Any) -> Any:
    """A tool of a city, which gives this answer (or raises it)."""

    def weather(city: str) -> Any:
        """The weather in a city."""
        if isinstance(answer, Exception):
            raise answer
        return answer() if callable(answer) else answer

    weather.__annotations__["city"] = str
    return weather


def asks(*contents: types.Content | str, **config: Any) -> LlmRequest:
    dialogue = [types.UserContent(one) if isinstance(one, str) else one for one in contents]
    return LlmRequest(contents=dialogue, config=types.GenerateContentConfig(**config))


def offer(*names: str, parameters: Any = CITY, mode: str = "ANY", only: list[str] | None = None) -> dict[str, Any]:
    declared = [types.FunctionDeclaration(name=name, parameters_json_schema=parameters) for name in names]
    calling = types.FunctionCallingConfig(mode=mode, allowed_function_names=only)
    return {
        "tools": [types.Tool(function_declarations=declared)],
        "tool_config": types.ToolConfig(function_calling_config=calling),
    }


async def answer(llm: MemoryLLM, request: LlmRequest, **more: Any) -> LlmResponse:
    model = AgentMemLlm(llm=llm, user="ada", **more)
    (response,) = [one async for one in model.generate_content_async(request)]
    return response


# ------------------------------------------------------------------------------------------------------- whose memory


async def test_one_model_serves_many_users_at_once(llm: MemoryLLM) -> None:
    bot = Bot(make_agent(llm))
    await asyncio.gather(bot.ask("ada", TOLD), bot.ask("bob", "My dog is called Bruno."))
    answers = await asyncio.gather(*(bot.ask(user, ASKED, "tuesday") for user in ("ada", "bob", "eve")))
    assert answers[:2] == [ANSWER, "Your dog is called Bruno."]
    assert "Biscuit" not in answers[2]
    assert "Bruno" not in answers[2]


async def test_a_session_is_a_dialogue_that_is_stored_once(llm: MemoryLLM) -> None:
    bot = Bot(make_agent(llm, instruction="Be brief."))
    for text in (TOLD, ASKED):
        said = await bot.ask("ada", text)
    assert said == ANSWER
    assert [role for role, _ in stored(llm)] == ["user", "assistant"] * 2
    assert {m.scope.session for m in llm.memories(user="ada", agent=APP).list()} == {"monday"}


async def test_two_runs_of_one_session_at_once(llm: MemoryLLM) -> None:
    bot = Bot(make_agent(llm))
    await bot.ask("ada", "Hello!")
    told = [TOLD, "My cat is called Tom."]
    await asyncio.gather(*(bot.ask("ada", text) for text in told))
    assert sorted(text for role, text in stored(llm) if role == "user") == ["Hello!", "My cat is called Tom.", TOLD]


async def test_somebody_has_to_say_whose_memory_it_is(llm: MemoryLLM) -> None:
    with pytest.raises(InvalidInput, match="AgentMemPlugin"):
        _ = [one async for one in AgentMemLlm(llm=llm).generate_content_async(asks(TOLD))]
    assert words(await answer(llm, asks(TOLD), agent="cook"))
    assert stored(llm, agent="cook")[0] == ("user", TOLD)
    assert words(await answer(llm, asks("Hello!"), remember=False))
    assert stored(llm, agent="") == []


async def test_the_answer_says_what_was_read(llm: MemoryLLM) -> None:
    await answer(llm, asks(TOLD))
    response = await answer(llm, asks(ASKED))
    assert words(response) == ANSWER
    assert TOLD in [memory["text"] for memory in response.custom_metadata["memories"]]
    usage = response.usage_metadata
    assert 0 < usage.cached_content_token_count < usage.prompt_token_count
    assert usage.total_token_count == usage.prompt_token_count + usage.candidates_token_count
    assert (response.finish_reason, response.partial) == (types.FinishReason.STOP, False)
    assert response.model_version == "agentmem/bundled"


# ------------------------------------------------------------------------------------------------ tools, forms, options


async def test_a_streaming_agent_with_a_tool(llm: MemoryLLM) -> None:
    bot = Bot(make_agent(llm, tool("It rains in Lisbon.")))
    events = [one async for one in bot.events("ada", "How is the weather in Lisbon?", "monday", stream=True)]
    (call,) = [call for event in events if not event.partial for call in event.get_function_calls()]
    assert (call.name, call.args) == ("weather", {"city": "Lisbon"})
    pieces = [words(event) for event in events if event.partial]
    assert len(pieces) > 1
    assert "".join(pieces) == words(events[-1])
    assert [text for _, text in stored(llm)[:3]] == [
        "How is the weather in Lisbon?",
        'Calling weather with {"city": "Lisbon"}',
        "It rains in Lisbon.",
    ]


async def test_an_agent_hands_over_to_another(llm: MemoryLLM) -> None:
    def hand_over(callback_context: Any, llm_request: LlmRequest) -> None:
        """Force it: ADK describes how in 200 words, which is more than the bundled model can read."""
        calling = types.FunctionCallingConfig(mode="ANY", allowed_function_names=["transfer_to_agent"])
        llm_request.config.tool_config = types.ToolConfig(function_calling_config=calling)

    short = {"generate_content_config": types.GenerateContentConfig(max_output_tokens=60)}  # what ADK says is long
    second = LlmAgent(name="second", model=AgentMemLlm(llm=llm), description="Knows dogs.", **short)
    bot = Bot(make_agent(llm, before_model_callback=hand_over, sub_agents=[second], **short))
    events = [one async for one in bot.events("ada", "I want to talk to second.", "monday")]
    assert events[-1].author == "second"
    assert words(events[-1])


@pytest.mark.parametrize(("names", "more"), [(["weather"], {}), (["rain", "weather"], {"only": ["weather"]})])
async def test_a_call_can_be_forced(llm: MemoryLLM, names: list[str], more: Any) -> None:
    response = await answer(llm, asks("How is the weather in Lisbon?", **offer(*names, **more)))
    (call,) = response.get_function_calls()
    assert (call.name, call.args) == ("weather", {"city": "Lisbon"})
    assert call.id.startswith("call_")


async def test_schemas_of_googles_own_form(llm: MemoryLLM) -> None:
    kinds = types.Schema(type="STRING", enum=["rain"])
    parameters = types.Schema(type="OBJECT", properties={"kind": kinds}, required=["kind"])
    wanted = offer("weather")
    wanted["tools"][0].function_declarations[0] = types.FunctionDeclaration(name="weather", parameters=parameters)
    (call,) = (await answer(llm, asks("How is it?", **wanted))).get_function_calls()
    assert call.args == {"kind": "rain"}


async def test_no_call_where_none_is_wanted(llm: MemoryLLM) -> None:
    assert (await answer(llm, asks("Hello!", **offer("weather", mode="NONE")))).get_function_calls() == []
    with pytest.raises(InvalidInput, match="there are no tools"):
        await answer(llm, asks("Hello!", **offer("weather", only=["snow"])))


class Weather(BaseModel):
    city: str
    unit: Literal["celsius"] | None


async def test_an_agent_that_answers_in_a_form(llm: MemoryLLM) -> None:
    bot = Bot(make_agent(llm, output_schema=Weather, output_key="weather"))
    assert Weather.model_validate_json(await bot.ask("ada", "How is the weather in Lisbon?")).city == "Lisbon"
    here = await bot.sessions.get_session(app_name=APP, user_id="ada", session_id="monday")
    assert here.state["weather"]["city"] == "Lisbon"


@pytest.mark.parametrize(
    "form",
    [
        {"response_json_schema": CITY},
        {"response_schema": CITY},
        {"response_schema": types.Schema(type="OBJECT", properties={"city": {"type": "STRING", "enum": ["Lisbon"]}})},
        {"response_schema": list[Literal["Lisbon"]], "response_mime_type": "application/json", "max_output_tokens": 9},
    ],
    ids=["json", "dict", "google", "type"],
)
async def test_forms_of_an_answer(llm: MemoryLLM, form: dict[str, Any]) -> None:
    assert words(await answer(llm, asks("Where?", **form)))[:1] in "{["


async def test_options_are_heard(llm: MemoryLLM) -> None:
    await answer(llm, asks(TOLD))
    assert words(await answer(llm, asks(ASKED, stop_sequences=["called"]))) == "Your dog is"
    cut = await answer(llm, asks(ASKED, max_output_tokens=2))
    assert cut.finish_reason == types.FinishReason.MAX_TOKENS
    assert cut.usage_metadata.candidates_token_count == 2
    wild = {"temperature": 2.0, "top_p": 0.9, "top_k": 40, "seed": 7}
    both = [words(await answer(llm, asks("Hello!", **wild), remember=False)) for _ in range(2)]
    assert both[0] == both[1]


async def test_a_call_that_is_cut_off_is_text(llm: MemoryLLM) -> None:
    response = await answer(llm, asks("Hello!", max_output_tokens=6, **offer("weather")))
    assert response.get_function_calls() == []
    assert words(response).startswith("<tool_call>")
    assert response.finish_reason == types.FinishReason.MAX_TOKENS


# ----------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"sky": "grey", "wind": [1, 2]}, '{"sky": "grey", "wind": [1, 2]}'),
        (["grey", 7], '{"result": ["grey", 7]}'),
        ("", "(nothing)"),
        ("Line of a long report.\n" * 2000, "Line of a long report."),
    ],
    ids=["dict", "list", "blank", "long"],
)
async def test_whatever_a_tool_gives_is_a_result(babbler: MemoryLLM, given: Any, kept: str) -> None:
    result = types.FunctionResponse(
        id="1", name="weather", response=given if isinstance(given, dict) else {"result": given}
    )
    dialogue = [
        types.UserContent("How is it?"),
        types.ModelContent(types.Part(function_call=types.FunctionCall(id="1", name="weather", args={}))),
        types.UserContent(types.Part(function_response=result)),
    ]
    await answer(babbler, asks(*dialogue, max_output_tokens=3))
    results = [text for role, text in stored(babbler, agent="") if role == "tool"]
    assert results[0].startswith(kept)
    babbler.writer.close(0)


async def test_a_result_of_bytes_is_shown_as_such(llm: MemoryLLM) -> None:
    result = types.FunctionResponse(name="weather", response={"result": b"\xff"})
    await answer(llm, asks(types.UserContent(types.Part(function_response=result))))
    assert stored(llm, agent="")[0] == ("tool", '{"result": "b\'\\\\xff\'"}')


async def test_a_tool_that_fails_ends_the_run_and_the_session_goes_on(llm: MemoryLLM) -> None:
    bot = Bot(make_agent(llm, tool(RuntimeError("the station is closed"))))
    with pytest.raises(RuntimeError, match="the station is closed"):
        await bot.ask("ada", "How is the weather in Lisbon?")
    assert await bot.ask("ada", TOLD)
    assert ("user", TOLD) in stored(llm)


async def test_a_tool_may_ask_the_same_model(llm: MemoryLLM) -> None:
    llm.memories(user="ada", agent=APP).add(TOLD)
    ask = llm.conversation(user="ada", agent=APP).chat
    await Bot(make_agent(llm, tool(lambda: ask(ASKED).text))).ask("ada", "How is the weather in Lisbon?")
    assert ("tool", ANSWER) in stored(llm)


async def test_loose_ends_of_tools_are_answered(llm: MemoryLLM) -> None:
    """A tool that is gone, a call without a result, a result without a call."""
    call = types.Part(function_call=types.FunctionCall(id="1", name="gone", args={"a": 1}))
    orphan = types.Part(function_response=types.FunctionResponse(id="2", name="other", response={"result": "2"}))
    contents = [
        types.UserContent(TOLD),
        types.ModelContent(call),
        types.UserContent([orphan]),
        types.UserContent(ASKED),
    ]
    assert words(await answer(llm, asks(*contents)))
    assert [role for role, _ in stored(llm, agent="")] == ["user", "assistant", "tool", "user", "assistant"]


@pytest.mark.parametrize(
    "request_",
    [
        asks(),
        asks("a\x00b"),
        asks(types.UserContent(types.Part(inline_data=types.Blob(data=b"GIF89a", mime_type="image/gif")))),
        asks(types.ModelContent(types.Part(function_call=types.FunctionCall(name="no name", args={})))),
        asks("Hello!", **offer("weather", parameters={"type": "array", "items": {"type": "number"}})),
        asks("Hello!", **offer("weather", "weather")),
        asks("Hello!", **offer("no name")),
        asks("Hello!", temperature=-1.0),
    ],
    ids=["empty", "nul", "image", "call", "array", "twice", "name", "temperature"],
)
async def test_what_the_model_cannot_use_is_refused(llm: MemoryLLM, request_: LlmRequest) -> None:
    with pytest.raises(InvalidInput):
        await answer(llm, request_)
    assert stored(llm, agent="") == []


async def test_two_tools_of_one_name_are_refused_in_a_run(llm: MemoryLLM) -> None:
    twice = [FunctionTool(tool("one")), FunctionTool(tool("two"))]
    with pytest.raises(InvalidInput, match="two tools have the name 'weather'"):
        await Bot(make_agent(llm, *twice)).ask("ada", "Hello!")


# ------------------------------------------------------------------------------------------------------------- leaving


async def test_a_run_that_is_left_stops_the_model(babbler: MemoryLLM) -> None:
    async with aclosing(Bot(make_agent(babbler)).events("ada", "Go on and on.", "monday", stream=True)) as events:
        heard = "".join([words(await anext(events)) for _ in range(5)])
    (_, (_, kept)) = stored(babbler)
    assert kept.startswith(heard.strip())
    assert len(kept.split()) < 1000


async def test_a_run_that_is_cancelled_stops_and_goes_on_later(babbler: MemoryLLM) -> None:
    bot = Bot(make_agent(babbler))
    task = asyncio.create_task(bot.ask("ada", "Go on and on."))
    await asyncio.sleep(0.5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    bot.runner.agent.generate_content_config = types.GenerateContentConfig(max_output_tokens=3)
    await bot.ask("ada", "Once more.")
    assert [text for role, text in stored(babbler) if role == "user"].count("Go on and on.") == 1
