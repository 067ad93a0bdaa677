"""The LLM: what is stored of a dialogue, options, forms, histories of other models, left streams, bad input."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import pytest
from llama_index.core.base.llms.types import ThinkingBlock, ToolCallBlock
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.llms import ChatMessage, ImageBlock, MessageRole, TextBlock
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel, Field

from agentmem import InvalidInput, MemoryLLM

from babbler import make_babbler
from llama_index.llms.agentmem_kv import AgentMem

TOLD = "My dog is called Biscuit."
ASKED = "What is my dog called?"
ANSWER = "Your dog is called Biscuit."


class Weather(BaseModel):
    """How is the weather?"""

    city: str
    unit: Literal["celsius"] | None


def weather(city: str) -> str:
    """The weather in a city."""
    return "It rains."


def rain(sure: bool) -> str:
    """Will it rain?"""
    return "It will."


WEATHER, RAIN = FunctionTool.from_defaults(weather), FunctionTool.from_defaults(rain)


# This module's annotations are text, which LlamaIndex takes as it is.
class City(BaseModel):
    city: str


class Sure(BaseModel):
    sure: bool


WEATHER.metadata.fn_schema, RAIN.metadata.fn_schema = City, Sure


@pytest.fixture
def chat(llm: MemoryLLM) -> AgentMem:
    return AgentMem(llm=llm, user="ada")


@pytest.fixture
def babbler(tmp_path: Path) -> Iterator[MemoryLLM]:
    with MemoryLLM(make_babbler(tmp_path / "model"), store=tmp_path / "long.db", max_new_tokens=8000) as llm:
        yield llm


def user(text: str) -> list[ChatMessage]:
    return [ChatMessage(text)]


def stored(llm: MemoryLLM) -> list[tuple[str, str]]:
    return [(str(m.role), m.text) for m in llm.memories(user="ada").list(sort="created_at")]


# ------------------------------------------------------------------------------------------------- what is remembered


def test_a_dialogue_that_is_sent_again_is_stored_once(llm: MemoryLLM, chat: AgentMem) -> None:
    system = ChatMessage("Be brief.", role="system")
    first = chat.chat([system, *user(TOLD)]).message
    dialogue = [system, *user(TOLD), first, *user(ASKED)]
    assert chat.chat(dialogue).message.content == ANSWER
    chat.chat(dialogue)
    assert [role for role, _ in stored(llm)] == ["user", "assistant", "user", "assistant"]
    assert len({m.scope.session for m in llm.memories(user="ada").list()}) == 1


def test_the_answer_says_what_was_read(llm: MemoryLLM) -> None:
    counter = TokenCountingHandler()
    chat = AgentMem(llm=llm, user="ada", callback_manager=CallbackManager([counter]))
    chat.complete(TOLD)
    counter.reset_counts()
    answer = chat.complete(ASKED)
    assert answer.text == ANSWER
    assert TOLD in [memory["text"] for memory in answer.raw["memories"]]
    assert 0 < sum(memory["attention"] for memory in answer.raw["memories"]) < 1
    assert answer.raw["finish_reason"] == "stop"
    assert answer.raw["usage"]["memory_tokens"] > 0
    assert counter.prompt_llm_token_count == answer.raw["usage"]["prompt_tokens"]
    assert counter.completion_llm_token_count == answer.raw["usage"]["completion_tokens"]


def test_sessions_and_what_is_not_to_be_remembered(llm: MemoryLLM) -> None:
    AgentMem(llm=llm, user="ada", remember=False).complete(TOLD)
    assert stored(llm) == []
    AgentMem(llm=llm, user="ada", session="monday").complete(TOLD)
    assert llm.memories(user="ada").list(session="monday", role="user")[0].text == TOLD


def test_options_are_heard(llm: MemoryLLM, chat: AgentMem) -> None:
    chat.complete(TOLD)
    assert chat.complete(ASKED, stop=["called"]).text == "Your dog is"
    assert AgentMem(llm=llm, user="ada", stop=["called"]).complete(ASKED).text == "Your dog is"
    short = AgentMem(llm=llm, user="ada", max_tokens=2)
    assert short.metadata.num_output == 2
    assert short.complete(ASKED).raw["finish_reason"] == "length"
    assert short.complete(ASKED, max_tokens=3).raw["usage"]["completion_tokens"] == 3
    wild = AgentMem(llm=llm, user="ada", remember=False, temperature=2.0)
    assert wild.complete("Hello!", top_p=0.9, seed=7).text == wild.complete("Hello!", top_p=0.9, seed=7).text
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
        chat.complete(ASKED, colour="red")


def test_it_is_told_apart_and_shown_without_its_model(chat: AgentMem) -> None:
    assert chat.metadata.model_name == "bundled"
    assert chat.metadata.is_function_calling_model
    assert chat.metadata.num_output == chat.llm.max_new_tokens
    assert chat.metadata.context_window > 100 * chat.llm.window_tokens  # nothing is to be cut off before it is sent
    assert chat.to_dict() == AgentMem(llm=chat.llm, user="ada").to_dict()
    assert "llm" not in chat.to_dict()
    assert chat.to_dict()["user"] == "ada"


# ------------------------------------------------------------------------------------------------------ calls and forms

NAMED = {"type": "function", "function": {"name": "weather"}}


@pytest.mark.parametrize(
    "choice",
    [
        {"tool_required": True},
        {"tool_choice": "any"},
        {"tool_choice": "required"},
        {"tool_choice": "weather"},
        {"tool_choice": NAMED},
    ],
)
def test_a_call_can_be_forced(chat: AgentMem, choice: dict[str, Any]) -> None:
    tools = [RAIN, WEATHER] if choice.get("tool_choice") in ("weather", NAMED) else [WEATHER]
    response = chat.chat_with_tools(tools, "How is the weather in Lisbon?", **choice)
    (call,) = chat.get_tool_calls_from_response(response)
    assert (call.tool_name, call.tool_kwargs) == ("weather", {"city": "Lisbon"})
    assert call.tool_id.startswith("call_")
    assert response.raw["finish_reason"] == "tool_calls"


def test_a_forced_call_is_run(chat: AgentMem) -> None:
    answer = chat.predict_and_call([WEATHER], "How is the weather in Lisbon?", tool_required=True)
    assert answer.response == "It rains."


def test_no_call_where_none_is_wanted(chat: AgentMem) -> None:
    for response in (
        chat.chat_with_tools([WEATHER], "Hello!", tool_choice="none"),
        chat.chat_with_tools([], "Hello!", tool_required=True),
    ):
        assert chat.get_tool_calls_from_response(response, error_on_no_tool_call=False) == []
        with pytest.raises(ValueError, match="called no tool; it said"):
            chat.get_tool_calls_from_response(response)
    with pytest.raises(InvalidInput, match="'snow', which is no tool"):
        chat.chat_with_tools([WEATHER], "Hello!", tool_choice="snow")


def test_a_call_that_is_cut_off_is_text(llm: MemoryLLM) -> None:
    chat = AgentMem(llm=llm, user="ada", max_tokens=6)
    response = chat.chat_with_tools([WEATHER], "Hello!", tool_required=True)
    assert chat.get_tool_calls_from_response(response, error_on_no_tool_call=False) == []
    assert response.message.content.startswith("<tool_call>")
    assert response.raw["finish_reason"] == "length"


def test_one_call_at_a_time_where_that_is_wanted(chat: AgentMem) -> None:
    def response() -> Any:
        answer = chat.chat_with_tools([WEATHER], "How is the weather in Lisbon?", tool_required=True)
        answer.message.blocks.append(ToolCallBlock(tool_call_id="2", tool_name="rain", tool_kwargs="{}"))
        return answer

    both = chat._validate_chat_with_tools_response(response(), [WEATHER, RAIN], allow_parallel_tool_calls=True)
    assert [call.tool_name for call in chat.get_tool_calls_from_response(both)] == ["weather", "rain"]
    one = chat._validate_chat_with_tools_response(response(), [WEATHER, RAIN])
    assert [call.tool_name for call in chat.get_tool_calls_from_response(one)] == ["weather"]


PROMPT = PromptTemplate("How is the weather in {city}?")


async def test_structured_prediction(chat: AgentMem) -> None:
    answers = [
        chat.structured_predict(Weather, PROMPT, city="Lisbon"),
        await chat.astructured_predict(Weather, PROMPT, city="Lisbon"),
        chat.as_structured_llm(Weather).complete("How is the weather in Lisbon?").raw,
        list(chat.stream_structured_predict(Weather, PROMPT, city="Lisbon"))[-1],
        [one async for one in await chat.astream_structured_predict(Weather, PROMPT, city="Lisbon")][-1],
    ]
    for answer in answers:
        assert isinstance(answer, Weather)
        assert answer.city == "Lisbon"


def test_a_streamed_form_grows(chat: AgentMem) -> None:
    objects = list(chat.stream_structured_predict(Weather, PROMPT, city="Lisbon"))
    filled = [sum(value is not None for value in vars(one).values()) for one in objects]
    assert filled == sorted(filled)
    assert len(objects) > 3


class Tree(BaseModel):
    """A tree."""

    leaf: Literal["green"]
    branches: list[Tree] = Field(max_length=1)


class Garden(BaseModel):
    """A garden. LlamaIndex's tools lose the schema of a class that contains itself at its top."""

    tree: Tree


def test_a_form_that_contains_itself(chat: AgentMem) -> None:
    prompt = PromptTemplate("Draw a tree.")
    assert chat.structured_predict(Garden, prompt).tree.leaf == "green"
    assert list(chat.stream_structured_predict(Tree, prompt))[-1].leaf == "green"


# ----------------------------------------------------------------------------------------------- histories, bad input


def test_histories_of_tools_are_taken_and_remembered(llm: MemoryLLM, chat: AgentMem) -> None:
    call = ToolCallBlock(tool_call_id="1", tool_name="weather", tool_kwargs='{"city": "Lisbon"}')
    blocks = [ThinkingBlock(content="They ask for the weather."), TextBlock(text="I look."), call]
    history = [
        ChatMessage("Be brief.", role=MessageRole.DEVELOPER),
        *user("How is the weather in Lisbon?"),
        ChatMessage(blocks=blocks, role="assistant"),
        ChatMessage("It rains.", role="tool", additional_kwargs={"tool_call_id": "1"}),
        ChatMessage(role="assistant"),
        ChatMessage(role="function", additional_kwargs={"tool_call_id": "orphan"}),
        ChatMessage("So it is.", role="chatbot"),
        *user("Thank you."),
    ]
    assert chat.chat(history).message.content
    assert [role for role, _ in stored(llm)] == ["user", "assistant", "tool", "tool", "assistant", "user", "assistant"]
    texts = [text for _, text in stored(llm)]
    assert texts[1] == 'I look.\nCalling weather with {"city": "Lisbon"}'
    assert texts[2:5] == ["It rains.", "(nothing)", "So it is."]


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [ChatMessage("Be brief.", role="system")],
        [ChatMessage(blocks=[ImageBlock(image=b"GIF89a")])],
        [ChatMessage("a\x00b")],
        [ChatMessage(blocks=[ToolCallBlock(tool_name="weather", tool_kwargs="{")], role="assistant")],
        [ChatMessage(blocks=[ToolCallBlock(tool_name="weather", tool_kwargs="[]")], role="assistant")],
        [ChatMessage(blocks=[ToolCallBlock(tool_name="no name", tool_kwargs={})], role="assistant")],
        [ChatMessage(blocks=[ToolCallBlock(tool_name="weather", tool_kwargs={})], role="user")],
    ],
)
async def test_what_the_model_cannot_read_is_refused(llm: MemoryLLM, chat: AgentMem, messages: Any) -> None:
    with pytest.raises(InvalidInput):
        chat.chat(messages)
    with pytest.raises(InvalidInput):
        await chat.achat(messages)
    with pytest.raises(InvalidInput):
        list(chat.stream_chat(messages))
    with pytest.raises(InvalidInput):
        _ = [response async for response in await chat.astream_chat(messages)]
    assert stored(llm) == []


def test_tools_that_cannot_be_offered_are_refused(chat: AgentMem) -> None:
    numbers = FunctionTool.from_defaults(weather, name="numbers")
    numbers.metadata.get_parameters_dict = lambda: {"type": "array", "items": {"type": "number"}}
    with pytest.raises(InvalidInput, match="parameters of the tool 'numbers' must be the JSON schema of an object"):
        chat.chat_with_tools([numbers], "Hello!")
    with pytest.raises(InvalidInput, match="two tools have the name 'weather'"):
        chat.chat_with_tools([WEATHER, FunctionTool.from_defaults(rain, name="weather", fn_schema=Sure)], "Hello!")


# ---------------------------------------------------------------------------------------- threads, event loops, leaving


async def test_answers_at_once_in_an_event_loop(llm: MemoryLLM, chat: AgentMem) -> None:
    await chat.acomplete(TOLD)
    bob = AgentMem(llm=llm, user="bob")
    await bob.acomplete("My dog is called Bruno.")
    answers = await asyncio.gather(*(one.acomplete(ASKED) for one in (chat, bob, chat, bob)))
    assert [answer.text.split()[-1] for answer in answers] == ["Biscuit.", "Bruno.", "Biscuit.", "Bruno."]
    pieces = [piece async for piece in await chat.astream_complete(ASKED)]
    assert "".join(piece.delta for piece in pieces) == pieces[-1].text == ANSWER
    assert [piece.text for piece in pieces] == sorted((piece.text for piece in pieces), key=len)


async def test_two_on_one_session_at_once(llm: MemoryLLM) -> None:
    one, two = (AgentMem(llm=llm, user="ada", session="monday") for _ in range(2))
    await asyncio.gather(*(chat.achat(user(TOLD)) for chat in (one, two, one, two)))
    assert [role for role, _ in stored(llm)] == ["user", "assistant"]


def kept(llm: MemoryLLM) -> str:
    return "".join(memory.text for memory in llm.memories(user="ada").list(role="assistant"))


async def until_kept(llm: MemoryLLM) -> str:
    """What was stored of an answer. LlamaIndex leaves inner generators to the event loop, which closes them soon."""
    for _ in range(500):
        if text := kept(llm):
            return text
        await asyncio.sleep(0.01)
    raise AssertionError("the answer was not stopped")


def test_a_stream_that_is_closed_stops(babbler: MemoryLLM) -> None:
    with closing(AgentMem(llm=babbler, user="ada").stream_complete("Go on and on.")) as stream:
        heard = "".join(next(stream).delta for _ in range(5))
    assert kept(babbler).startswith(heard.strip())
    assert len(kept(babbler).split()) < 100


async def test_a_stream_that_is_left_in_an_event_loop_stops(babbler: MemoryLLM) -> None:
    stream = await AgentMem(llm=babbler, user="ada").astream_chat(user("Go on and on."))
    heard = [(await anext(stream)).delta for _ in range(5)]
    await stream.aclose()
    text = await until_kept(babbler)
    assert text.startswith("".join(heard).strip())
    assert len(text.split()) < 1000


async def test_a_task_that_is_cancelled_stops_and_may_ask_again(babbler: MemoryLLM) -> None:
    chat = AgentMem(llm=babbler, user="ada")
    task = asyncio.create_task(chat.achat(user("Go on and on.")))
    while not stored(babbler):
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await chat.achat(user("Go on and on."), max_tokens=3)
    assert [role for role, _ in stored(babbler)].count("user") == 1
