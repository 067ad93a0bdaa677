"""The chat generator in pipelines and agents: saved and loaded, what is stored, tools, streaming, bad input."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any, Literal

import pytest
from haystack import Pipeline
from haystack.components.agents import Agent
from haystack.core.serialization import allow_deserialization_module
from haystack.dataclasses import ChatMessage, ImageContent, StreamingChunk, TextContent, ToolCall
from haystack.tools import Tool, Toolset
from pydantic import BaseModel

from agentmem import InvalidInput

from agentmem_contract import python
from babbler import make_babbler
from haystack_integrations.components.generators.agentmem_kv import AgentMemChatGenerator
from haystack_integrations.memory_stores.agentmem_kv import AgentMemMemoryStore
from tool_of import tool_of

TOLD, ASKED, ANSWER = "My dog is called Biscuit.", "What is my dog called?", "Your dog is called Biscuit."
HEARD: list[str] = []
LISBON = "How is the weather in Lisbon?"


def hear(chunk: StreamingChunk) -> None:
    """A callback that a pipeline can be saved with."""
    HEARD.append(chunk.content)


def weather(city: str) -> str:
    """The weather in a city."""
    return f"It rains in {city}."


def snow(city: str) -> str:
    """Whether it snows in a city."""
    return f"It does not snow in {city}."


WEATHER, SNOW = tool_of(weather), tool_of(snow)


class Report(BaseModel):
    """How the weather is."""

    city: str
    unit: Literal["celsius"] | None


@pytest.fixture
def chat(memory_store: AgentMemMemoryStore) -> AgentMemChatGenerator:
    return AgentMemChatGenerator(memory_store, user_id="ada")


def say(chat: AgentMemChatGenerator, messages: Any, **more: Any) -> ChatMessage:
    (reply,) = chat.run(messages, **more)["replies"]
    return reply


def stored(store: AgentMemMemoryStore) -> list[tuple[str, str]]:
    return [(str(m.role), m.text) for m in store.llm.memories(user="ada").list(sort="created_at")]


# ------------------------------------------------------------------------------------------------------ saved pipelines


def test_a_pipeline_is_saved_and_loaded_and_then_remembers(memory_store: AgentMemMemoryStore, tmp_path: Path) -> None:
    allow_deserialization_module("test_generator")
    pipeline = Pipeline()
    made = AgentMemChatGenerator(
        memory_store, user_id="ada", streaming_callback=hear, tools=[WEATHER], generation_kwargs={"max_tokens": 50}
    )
    pipeline.add_component("llm", made)
    pipeline.run({"llm": {"messages": TOLD}})
    text = pipeline.dumps()
    assert Pipeline.from_dict(pipeline.to_dict()).dumps() == text
    pipeline.close()

    loaded = Pipeline.loads(text)
    component = loaded.get_component("llm")
    assert component.tools[0].name == "weather"
    assert component.streaming_callback is hear
    HEARD.clear()
    inputs = {"messages": ASKED, "generation_kwargs": {"tool_choice": "none"}}
    reply = loaded.run({"llm": inputs})["llm"]["replies"][0]
    assert reply.text == "".join(HEARD) == ANSWER
    loaded.close()


def test_a_saved_pipeline_remembers_in_another_process(memory_store: AgentMemMemoryStore, tmp_path: Path) -> None:
    pipeline = Pipeline()
    pipeline.add_component("llm", AgentMemChatGenerator(memory_store, user_id="ada"))
    pipeline.run({"llm": {"messages": TOLD}})
    (tmp_path / "saved.yaml").write_text(pipeline.dumps(), "utf-8")
    pipeline.close()
    script = tmp_path / "ask.py"
    script.write_text(
        "from haystack import Pipeline\n"
        "with open('saved.yaml', encoding='utf-8') as file:\n"
        "    pipeline = Pipeline.load(file)\n"
        f"print(pipeline.run({{'llm': {{'messages': {ASKED!r}}}}})['llm']['replies'][0].text)\n",
        "utf-8",
    )
    assert python(script, cwd=tmp_path) == ANSWER


def test_an_agent_is_saved_and_loaded(memory_store: AgentMemMemoryStore) -> None:
    allow_deserialization_module("test_generator")
    agent = Agent(chat_generator=AgentMemChatGenerator(memory_store, user_id="ada"), tools=Toolset([WEATHER, SNOW]))
    agent.run([ChatMessage.from_user(TOLD)])
    loaded = Agent.from_dict(agent.to_dict())
    assert loaded.run([ChatMessage.from_user(ASKED)])["last_message"].text == ANSWER
    agent.close()
    loaded.close()


def test_a_pipeline_as_a_stream(chat: AgentMemChatGenerator) -> None:
    pipeline = Pipeline()
    pipeline.add_component("llm", chat)
    say(chat, TOLD)

    async def listen() -> tuple[list[str], Any]:
        handle = pipeline.stream({"llm": {"messages": ASKED}})
        return [chunk.content async for chunk in handle], handle.result

    pieces, result = asyncio.run(listen())
    assert "".join(pieces) == result["llm"]["replies"][0].text == ANSWER
    assert len(pieces) > 2


# ------------------------------------------------------------------------------------------------ what is said and kept


def test_a_dialogue_that_is_sent_again_is_stored_once(
    chat: AgentMemChatGenerator, memory_store: AgentMemMemoryStore
) -> None:
    head = ChatMessage.from_system("Be brief.")
    first = say(chat, [head, ChatMessage.from_user(TOLD)])
    dialogue = [head, ChatMessage.from_user(TOLD), first, ChatMessage.from_user(ASKED)]
    assert say(chat, dialogue).text == ANSWER
    say(chat, dialogue)
    assert [role for role, _ in stored(memory_store)] == ["user", "assistant", "user", "assistant"]
    assert len({m.scope.session for m in memory_store.llm.memories(user="ada").list()}) == 1


def test_the_answer_says_what_was_read(chat: AgentMemChatGenerator) -> None:
    say(chat, TOLD)
    meta = say(chat, ASKED).meta
    assert TOLD in [memory["text"] for memory in meta["memories"]]
    assert 0 < sum(memory["attention"] for memory in meta["memories"]) < 1
    assert meta["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    assert (meta["model"], meta["finish_reason"]) == ("bundled", "stop")
    json.dumps(meta)


def test_options_are_heard(chat: AgentMemChatGenerator, memory_store: AgentMemMemoryStore) -> None:
    say(chat, TOLD, generation_kwargs={"session_id": "monday"})
    assert memory_store.llm.memories(user="ada").list(session="monday", role="user")[0].text == TOLD
    assert say(chat, ASKED, generation_kwargs={"stop": ["called"]}).text == "Your dog is"
    short = AgentMemChatGenerator(memory_store, user_id="ada", generation_kwargs={"max_tokens": 2})
    assert say(short, ASKED).meta["finish_reason"] == "length"
    assert say(short, ASKED, generation_kwargs={"max_tokens": 50}).text == ANSWER
    before = len(stored(memory_store))
    wild = {"temperature": 2.0, "top_p": 0.9, "top_k": 50, "seed": 7, "remember": False}
    assert len({say(chat, "Hello!", generation_kwargs=wild).text for _ in range(2)}) == 1
    assert len(stored(memory_store)) == before
    with pytest.raises(TypeError, match="colour"):
        say(chat, ASKED, generation_kwargs={"colour": "red"})


def test_one_agent_for_several_users(memory_store: AgentMemMemoryStore) -> None:
    agent = Agent(chat_generator=AgentMemChatGenerator(memory_store))
    for user, dog in {"ada": "Biscuit", "bob": "Bruno"}.items():
        agent.run([ChatMessage.from_user(f"My dog is called {dog}.")], generation_kwargs={"user_id": user})
    answer = agent.run([ChatMessage.from_user(ASKED)], generation_kwargs={"user_id": "bob"})["last_message"].text
    assert answer == "Your dog is called Bruno."
    with pytest.raises(Exception, match="whose memories"):
        agent.run([ChatMessage.from_user(ASKED)])


# ------------------------------------------------------------------------------------------------------ tools and forms


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_call_can_be_forced(chat: AgentMemChatGenerator, choice: Any) -> None:
    chunks: list[StreamingChunk] = []
    tools = [WEATHER] if choice == "required" else [SNOW, WEATHER]
    forced = {"generation_kwargs": {"tool_choice": choice}, "tools": tools}
    reply = say(chat, LISBON, streaming_callback=chunks.append, **forced)
    assert [(call.tool_name, call.arguments) for call in reply.tool_calls] == [("weather", {"city": "Lisbon"})]
    assert reply.meta["finish_reason"] == chunks[-1].finish_reason == "tool_calls"
    (delta,) = chunks[-1].tool_calls
    assert (delta.tool_name, json.loads(delta.arguments)) == ("weather", {"city": "Lisbon"})
    assert delta.id == reply.tool_calls[0].id


def test_no_call_where_none_is_wanted(chat: AgentMemChatGenerator) -> None:
    assert say(chat, "Hello!", tools=[WEATHER], generation_kwargs={"tool_choice": "none"}).tool_calls == []
    choice = {"type": "function", "function": {"name": "snow"}}
    with pytest.raises(InvalidInput, match="'snow'"):
        say(chat, "Hello!", tools=[WEATHER], generation_kwargs={"tool_choice": choice})


def test_a_call_that_is_cut_off_is_text(chat: AgentMemChatGenerator) -> None:
    reply = say(chat, LISBON, tools=[WEATHER], generation_kwargs={"tool_choice": "required", "max_tokens": 6})
    assert reply.tool_calls == []
    assert reply.text.startswith("<tool_call>")
    assert reply.meta["finish_reason"] == "length"


@pytest.mark.parametrize("pydantic", [True, False])
def test_a_form_of_the_answer(chat: AgentMemChatGenerator, pydantic: bool) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "report", "schema": Report.model_json_schema()}}
    reply = say(chat, LISBON, generation_kwargs={"response_format": Report if pydantic else schema})
    assert Report.model_validate_json(reply.text).city == "Lisbon"


def test_histories_of_tools_are_taken_and_remembered(
    chat: AgentMemChatGenerator, memory_store: AgentMemMemoryStore
) -> None:
    call, unknown = ToolCall("weather", {"city": "Lisbon"}, id="1"), ToolCall("unknown", {"deep": {"er": [1, None]}})
    history = [
        ChatMessage.from_user(LISBON),
        ChatMessage.from_assistant("I look.", tool_calls=[call, unknown]),
        ChatMessage.from_tool("It rains.", origin=call),
        ChatMessage.from_tool([TextContent("Not"), TextContent("known.")], origin=unknown, error=True),
        ChatMessage.from_assistant(""),
        ChatMessage.from_tool("", origin=ToolCall("orphan", {}, id="9")),
        ChatMessage.from_user("Thank you."),
    ]
    assert say(chat, history).text
    told = stored(memory_store)
    assert [role for role, _ in told] == ["user", "assistant", "tool", "tool", "tool", "user", "assistant"]
    assert told[1][1].startswith('I look.\nCalling weather with {"city": "Lisbon"}\nCalling unknown with')
    assert [text for _, text in told[2:5]] == ["It rains.", "Not\nknown.", "(nothing)"]


def test_a_tool_of_an_agent_that_fails_is_told_to_the_model(
    chat: AgentMemChatGenerator, memory_store: AgentMemMemoryStore
) -> None:
    def report(city: str) -> bytes:
        """Bytes."""
        raise ValueError("the sensor sleeps")

    tool = tool_of(report)
    agent = Agent(chat_generator=chat, tools=[tool], exit_conditions=["report"], max_agent_steps=1)
    agent.run([ChatMessage.from_user(LISBON)], generation_kwargs={"tool_choice": "required"})
    called = agent.run([ChatMessage.from_user(LISBON)], generation_kwargs={"tool_choice": "required"})["messages"]
    assert say(chat, called).text
    assert any("sensor sleeps" in text for role, text in stored(memory_store) if role == "tool")


@pytest.mark.parametrize("result", [b"\xff\x00", "It rains in Lisbon. " * 52_429])
def test_odd_results_of_a_tool(memory_store: AgentMemMemoryStore, result: Any) -> None:
    def report(city: str) -> Any:
        """The weather."""
        return result

    chat = AgentMemChatGenerator(memory_store, user_id="ada", generation_kwargs={"remember": False})
    agent = Agent(chat_generator=chat, tools=[tool_of(report)], exit_conditions=["report"])
    called = agent.run([ChatMessage.from_user(LISBON)], generation_kwargs={"tool_choice": "required"})
    assert say(chat, called["messages"]).meta["finish_reason"] in {"stop", "length"}


def test_tools_that_are_none(chat: AgentMemChatGenerator) -> None:
    with pytest.raises(ValueError, match="weather"):
        say(chat, "Hello!", tools=[WEATHER, Tool("weather", "Another.", {"type": "object", "properties": {}}, snow)])
    listed = Tool("listed", "A list.", {"type": "array", "items": {"type": "string"}}, snow)
    with pytest.raises(InvalidInput, match="schema of an object"):
        say(chat, "Hello!", tools=[listed])


@pytest.mark.parametrize(
    "messages",
    [
        [ChatMessage.from_system("Be brief.")],
        [ChatMessage.from_user(content_parts=["Look!", ImageContent("iVBORw0KGgo=", mime_type="image/png")])],
        "a\x00b",
    ],
    ids=["no question", "image", "no character"],
)
def test_what_the_model_cannot_read_is_refused(
    chat: AgentMemChatGenerator, memory_store: AgentMemMemoryStore, messages: Any
) -> None:
    with pytest.raises(ValueError):
        say(chat, messages)
    assert stored(memory_store) == []
    assert chat.run([])["replies"] == []


# -------------------------------------------------------------------------------------------------- at once, and an end


async def test_answers_at_once_in_an_event_loop(memory_store: AgentMemMemoryStore) -> None:
    chats = {user: AgentMemChatGenerator(memory_store, user_id=user) for user in ("ada", "bob")}
    heard: list[str] = []

    async def listen(chunk: StreamingChunk) -> None:
        heard.append(chunk.content)

    for user, dog in {"ada": "Biscuit", "bob": "Bruno"}.items():
        await chats[user].run_async(f"My dog is called {dog}.")
    answers = await asyncio.gather(*(chats[user].run_async(ASKED) for user in ("ada", "bob", "ada", "bob")))
    assert [a["replies"][0].text.split()[-1] for a in answers] == ["Biscuit.", "Bruno.", "Biscuit.", "Bruno."]
    last = await chats["ada"].run_async(ASKED, streaming_callback=listen)
    assert "".join(heard) == last["replies"][0].text == ANSWER


def test_two_agents_on_one_session_at_once(memory_store: AgentMemMemoryStore) -> None:
    def work(text: str) -> None:
        chat = AgentMemChatGenerator(memory_store, user_id="ada", session_id="monday")
        Agent(chat_generator=chat).run([ChatMessage.from_user(text)])

    threads = [threading.Thread(target=work, args=(text,)) for text in (TOLD, "My cat is called Tom.")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(role for role, _ in stored(memory_store)) == ["assistant", "assistant", "user", "user"]


async def test_a_task_that_is_cancelled_stops(tmp_path: Path) -> None:
    model = str(make_babbler(tmp_path / "babbler"))
    store = AgentMemMemoryStore(str(tmp_path / "m.db"), model=model, options={"max_new_tokens": 8000})
    begun = asyncio.Event()

    async def listen(chunk: StreamingChunk) -> None:
        begun.set()

    chat = AgentMemChatGenerator(store, user_id="ada", streaming_callback=listen)
    task = asyncio.create_task(chat.run_async("Go on and on."))
    await asyncio.wait_for(begun.wait(), 60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert 0 < sum(m.n_tokens for m in store.llm.memories(user="ada").list(role="assistant", limit=1000)) < 4000
    store.close()
