"""What LangChain's suites do not ask: what is stored of a dialogue, tools' histories, forms, cancelling, bad input."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from pydantic import BaseModel

from agentmem import InvalidInput, MemoryLLM

from babbler import make_babbler
from langchain_agentmem_kv import AgentMemRetriever, ChatAgentMem

TOLD = "My dog is called Biscuit."
ASKED = "What is my dog called?"


class Weather(BaseModel):
    """How is the weather?"""

    city: Literal["Lisbon"]
    unit: Literal["celsius"] | None


class Rain(BaseModel):
    """Will it rain?"""

    sure: bool


@pytest.fixture
def llm(tmp_path: Path) -> Iterator[MemoryLLM]:
    with MemoryLLM(store=tmp_path / "memory.db", window_tokens=900) as opened:
        yield opened


@pytest.fixture
def chat(llm: MemoryLLM) -> ChatAgentMem:
    return ChatAgentMem(llm=llm, user="ada")


def stored(llm: MemoryLLM) -> list[tuple[str, str]]:
    return [(str(m.role), m.text) for m in llm.memories(user="ada").list(sort="created_at")]


def test_a_dialogue_that_is_sent_again_is_stored_once(llm: MemoryLLM, chat: ChatAgentMem) -> None:
    first = chat.invoke([SystemMessage("Be brief."), HumanMessage(TOLD)])
    dialogue = [SystemMessage("Be brief."), HumanMessage(TOLD), first, HumanMessage(ASKED)]
    assert "Biscuit" in chat.invoke(dialogue).text
    assert [role for role, _ in stored(llm)] == ["user", "assistant", "user", "assistant"]
    chat.invoke(dialogue)
    assert len(stored(llm)) == 4
    assert {m.scope.session for m in llm.memories(user="ada").list()} == {
        llm.memories(user="ada").list()[0].scope.session
    }


def test_the_answer_says_what_was_read(chat: ChatAgentMem) -> None:
    chat.invoke(TOLD)
    answer = chat.invoke(ASKED)
    assert answer.text == "Your dog is called Biscuit."
    assert TOLD in [memory["text"] for memory in answer.response_metadata["memories"]]
    assert answer.usage_metadata["input_token_details"]["cache_read"] > 0
    assert answer.response_metadata["finish_reason"] == "stop"
    read = sum(memory["attention"] for memory in answer.response_metadata["memories"])
    assert 0 < read < 1


def test_what_is_not_to_be_remembered_is_not(llm: MemoryLLM) -> None:
    ChatAgentMem(llm=llm, user="ada", remember=False).invoke(TOLD)
    assert stored(llm) == []


def test_a_named_session_goes_on(llm: MemoryLLM) -> None:
    ChatAgentMem(llm=llm, user="ada", session="monday").invoke(TOLD)
    assert llm.memories(user="ada").list(session="monday", role="user")[0].text == TOLD


def test_options_are_heard(chat: ChatAgentMem) -> None:
    chat.invoke(TOLD)
    assert chat.invoke(ASKED, stop=["called"]).text == "Your dog is"
    cut = ChatAgentMem(llm=chat.llm, user="ada", max_tokens=2).invoke(ASKED)
    assert cut.usage_metadata["output_tokens"] == 2
    assert cut.response_metadata["finish_reason"] == "length"
    forgetful = ChatAgentMem(llm=chat.llm, user="ada", remember=False)
    wild = [forgetful.bind(temperature=2.0, top_p=0.9, seed=7).invoke("Hello!").text for _ in range(2)]
    assert wild[0] == wild[1]
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
        chat.invoke(ASKED, colour="red")


NAMED = {"type": "function", "function": {"name": "Weather"}}


@pytest.mark.parametrize("choice", ["any", "required", True, "Weather", NAMED])
def test_a_call_can_be_forced(chat: ChatAgentMem, choice: Any) -> None:
    tools = [Weather] if choice in ("any", "required", True) else [Rain, Weather]
    answer = chat.bind_tools(tools, tool_choice=choice).invoke("How is the weather in Lisbon?")
    (call,) = answer.tool_calls
    assert call["name"] == "Weather"
    assert call["args"]["city"] == "Lisbon"
    assert call["id"].startswith("call_")
    assert answer.response_metadata["finish_reason"] == "tool_calls"


def test_no_call_where_none_is_wanted(chat: ChatAgentMem) -> None:
    assert chat.bind_tools([Weather], tool_choice="none").invoke("Hello!").tool_calls == []
    with pytest.raises(InvalidInput, match="'Snow', which is no tool"):
        chat.bind_tools([Weather], tool_choice="Snow").invoke("Hello!")


def test_a_call_that_is_cut_off_is_text(llm: MemoryLLM) -> None:
    answer = ChatAgentMem(llm=llm, user="ada", max_tokens=6).bind_tools([Weather], tool_choice="any").invoke("Hello!")
    assert answer.tool_calls == []
    assert answer.text.startswith("<tool_call>")
    assert answer.response_metadata["finish_reason"] == "length"


@pytest.mark.parametrize("schema", [Weather, Weather.model_json_schema()])
def test_structured_output(chat: ChatAgentMem, schema: Any) -> None:
    answer = chat.with_structured_output(schema).invoke("How is the weather in Lisbon?")
    found = answer if isinstance(answer, dict) else answer.model_dump()
    assert found["city"] == "Lisbon"
    assert set(found) == {"city", "unit"}


def test_a_form_of_the_answer(chat: ChatAgentMem) -> None:
    schema = Rain.model_json_schema() | {"additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "rain", "schema": schema}}
    assert Rain.model_validate_json(chat.bind(response_format=form).invoke("Will it rain?").text)
    assert chat.bind(response_format={"type": "text"}).invoke("Will it rain?").text


def test_histories_of_tools_are_taken_and_remembered(llm: MemoryLLM, chat: ChatAgentMem) -> None:
    call = {"name": "Weather", "args": {"city": "Lisbon"}, "id": "1", "type": "tool_call"}
    parts = [
        {"type": "text", "text": "I look."},
        {"type": "tool_use", "id": "1", "name": "Weather", "input": call["args"]},
        {"type": "reasoning", "reasoning": "They ask for the weather."},
    ]
    history = [
        HumanMessage("How is the weather in Lisbon?"),
        AIMessage(parts, tool_calls=[call]),
        ToolMessage([{"type": "text", "text": "It rains."}], tool_call_id="1"),
        AIMessage(""),
        ToolMessage("", tool_call_id="orphan"),
        HumanMessage("Thank you."),
    ]
    assert chat.invoke(history).text
    roles = [role for role, _ in stored(llm)]
    assert roles == ["user", "assistant", "tool", "tool", "user", "assistant"]
    texts = [text for _, text in stored(llm)]
    assert texts[1] == 'I look.\nCalling Weather with {"city": "Lisbon"}'
    assert texts[2:4] == ["It rains.", "(nothing)"]


@pytest.mark.parametrize(
    "messages",
    [
        [],
        "",
        [SystemMessage("Be brief.")],
        [HumanMessage([{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}])],
        [HumanMessage("a\x00b")],
    ],
)
def test_what_the_model_cannot_read_is_refused(llm: MemoryLLM, chat: ChatAgentMem, messages: Any) -> None:
    with pytest.raises(ValueError):
        chat.invoke(messages)
    assert stored(llm) == []


def test_a_whole_batch_at_once(llm: MemoryLLM) -> None:
    dogs = {"ada": "Biscuit", "bob": "Bruno", "eve": "Rex"}
    for user, dog in dogs.items():
        ChatAgentMem(llm=llm, user=user).invoke(f"My dog is called {dog}.")
    answers = ChatAgentMem(llm=llm, user="ada").batch([ASKED] * 4)
    assert {answer.text for answer in answers} == {"Your dog is called Biscuit."}


async def test_answers_at_once_in_an_event_loop(llm: MemoryLLM, chat: ChatAgentMem) -> None:
    await chat.ainvoke(TOLD)
    bob = ChatAgentMem(llm=llm, user="bob")
    await bob.ainvoke("My dog is called Bruno.")
    answers = await asyncio.gather(*(one.ainvoke(ASKED) for one in (chat, bob, chat, bob)))
    assert [answer.text.split()[-1] for answer in answers] == ["Biscuit.", "Bruno.", "Biscuit.", "Bruno."]
    assert "".join([chunk.text async for chunk in chat.astream(ASKED)]) == "Your dog is called Biscuit."


async def kept_of_it(llm: MemoryLLM) -> str:
    """What was stored of an answer. LangChain leaves its inner generator to the event loop, which closes it soon."""
    for _ in range(500):
        if kept := llm.memories(user="ada").list(role="assistant"):
            return "".join(memory.text for memory in kept)
        await asyncio.sleep(0.01)
    raise AssertionError("the answer was not stopped")


async def test_a_stream_that_is_left_in_an_event_loop_stops(tmp_path: Path) -> None:
    with MemoryLLM(make_babbler(tmp_path / "model"), store=tmp_path / "memory.db", max_new_tokens=8000) as llm:
        stream = ChatAgentMem(llm=llm, user="ada").astream("Go on and on.")
        heard = [(await anext(stream)).text for _ in range(5)]
        await stream.aclose()
        kept = await kept_of_it(llm)
        assert kept.startswith("".join(heard).strip())
        assert len(kept.split()) < 100


async def test_a_task_that_is_cancelled_stops(tmp_path: Path) -> None:
    with MemoryLLM(make_babbler(tmp_path / "model"), store=tmp_path / "memory.db", max_new_tokens=8000) as llm:
        heard: list[str] = []

        async def listen() -> None:
            async for chunk in ChatAgentMem(llm=llm, user="ada").astream("Go on and on."):
                heard.append(chunk.text)

        task = asyncio.create_task(listen())
        while len(heard) < 5:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len((await kept_of_it(llm)).split()) < 100


def test_the_retriever_keeps_to_its_user_and_filters(llm: MemoryLLM) -> None:
    llm.memories(user="ada").add("The tax form is due in May.", id="tax", tags=["work/tax"], meta={"year": 2026})
    llm.memories(user="ada").add("The tax form was due in June.", tags=["work/tax"], meta={"year": 2025})
    (found,) = AgentMemRetriever(llm=llm, user="ada", filters={"meta": {"year": 2026}}).invoke("tax form")
    assert found.id == "tax"
    assert found.metadata["year"] == 2026
    assert found.metadata["role"] == "user"
    assert AgentMemRetriever(llm=llm, user="bob").invoke("tax form") == []
    assert AgentMemRetriever(llm=llm, user="ada", threshold=1000.0).invoke("tax form") == []
