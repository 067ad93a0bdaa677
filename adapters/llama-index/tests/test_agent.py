"""Agents for real: streaming, tools that go wrong, runs that are cancelled, memory blocks, retrievers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.agent.workflow import AgentStream, FunctionAgent, ToolCallResult
from llama_index.core.base.llms.types import ToolCallBlock
from llama_index.core.llms import ChatMessage
from llama_index.core.memory import ChatMemoryBuffer, InsertMethod, Memory
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.tools import FunctionTool
from pydantic import create_model
from sqlalchemy.ext.asyncio import create_async_engine
from workflows.errors import WorkflowCancelledByUser

from agentmem import InvalidInput, MemoryLLM

from babbler import make_babbler
from llama_index.llms.agentmem_kv import AgentMem
from llama_index.memory.agentmem_kv import AgentMemBlock
from llama_index.retrievers.agentmem_kv import AgentMemRetriever

TOLD = "My dog is called Biscuit."
ASKED = "What is my dog called?"
ANSWER = "Your dog is called Biscuit."


def tool(answer: Any, name: str = "weather") -> FunctionTool:
    """A tool of a city, which gives this answer (or raises it)."""

    def weather(city: str) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer() if callable(answer) else answer

    schema = create_model("weather", city=(str, ...))
    return FunctionTool.from_defaults(weather, name=name, description="The weather in a city.", fn_schema=schema)


def agent(llm: MemoryLLM, *tools: Any, user: str = "ada", **more: Any) -> FunctionAgent:
    return FunctionAgent(llm=AgentMem(llm=llm, user=user), tools=list(tools), **more)


def stored(llm: MemoryLLM) -> list[tuple[str, str]]:
    return [(str(m.role), m.text) for m in llm.memories(user="ada").list(sort="created_at", limit=1000)]


# -------------------------------------------------------------------------------------------------------------- agents


async def test_a_streaming_agent_with_a_tool(llm: MemoryLLM) -> None:
    handler = agent(llm, tool("It rains in Lisbon.")).run("How is the weather in Lisbon?")
    events = [event async for event in handler.stream_events()]
    answer = str(await handler)
    (result,) = [event for event in events if isinstance(event, ToolCallResult)]
    assert (result.tool_name, result.tool_kwargs) == ("weather", {"city": "Lisbon"})
    said = events[events.index(result) :]
    assert "".join(event.delta for event in said if isinstance(event, AgentStream)) == answer
    assert len([event for event in said if isinstance(event, AgentStream) and event.delta]) > 1
    assert [text for _, text in stored(llm)[:3]] == [
        "How is the weather in Lisbon?",
        'Calling weather with {"city": "Lisbon"}',
        "It rains in Lisbon.",
    ]
    assert stored(llm)[-1] == ("assistant", answer)


async def test_an_agent_that_does_not_stream_answers_the_same(llm: MemoryLLM) -> None:
    await agent(llm).run(TOLD)
    assert str(await agent(llm, streaming=False).run(ASKED)) == ANSWER


async def test_a_dialogue_of_several_runs_is_stored_once(llm: MemoryLLM) -> None:
    """Also one that is longer than the window: a list whose beginning LlamaIndex had cut off would be another one."""
    bot = agent(llm, system_prompt="Be brief.")
    buffer = ChatMemoryBuffer.from_defaults(llm=bot.llm)
    told = [f"Drawer {n} is where I keep all the papers of the house with the number {n}." for n in range(12)]
    for text in (TOLD, *told, ASKED):
        answer = str(await bot.run(text, memory=buffer))
    assert answer == ANSWER
    assert [role for role, _ in stored(llm)] == ["user", "assistant"] * 14


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        (b"\xff\x00 bytes", "b'\\xff\\x00 bytes'"),
        ({"sky": "grey"}, "{'sky': 'grey'}"),
        ("", "(nothing)"),
        (None, "None"),
        (RuntimeError("the station is closed"), "the station is closed"),
    ],
    ids=["bytes", "dict", "blank", "none", "error"],
)
async def test_whatever_a_tool_gives_is_a_result(llm: MemoryLLM, answer: Any, kept: str) -> None:
    assert str(await agent(llm, tool(answer)).run("How is the weather in Lisbon?"))
    (result,) = [text for role, text in stored(llm) if role == "tool"]
    assert kept in result


async def test_a_result_of_a_megabyte_becomes_memory(tmp_path: Path) -> None:
    lines = "".join(f"Line {n} says {n * 7919 % 100_003}. " for n in range(40_000))[:1_000_000]
    with MemoryLLM(make_babbler(tmp_path / "model"), store=tmp_path / "memory.db", window_tokens=512) as llm:
        call = ToolCallBlock(tool_call_id="1", tool_name="weather", tool_kwargs={"city": "Lisbon"})
        result = ChatMessage(str(tool(lines)(city="Lisbon")), role="tool", additional_kwargs={"tool_call_id": "1"})
        dialogue = [ChatMessage("Read it."), ChatMessage(blocks=[call], role="assistant"), result]
        response = AgentMem(llm=llm, user="ada", max_tokens=4).chat(dialogue)
        assert response.raw["usage"]["prompt_tokens"] <= 512
        kept = llm.memories(user="ada").list(role="tool", limit=20_000)
        assert sum(len(memory.text) for memory in kept) == len(lines)
        llm.writer.close(0)


async def test_a_tool_may_ask_the_same_model(llm: MemoryLLM) -> None:
    chat = AgentMem(llm=llm, user="ada")
    await chat.acomplete(TOLD)
    await agent(llm, tool(lambda: chat.complete(ASKED).text)).run("How is the weather in Lisbon?")
    assert ANSWER in [text for role, text in stored(llm) if role == "tool"]


async def test_calls_that_nobody_answers_do_not_stop_an_agent(llm: MemoryLLM) -> None:
    """A tool that is gone, and a result that nobody asked for, in a history that another model left."""
    gone = ToolCallBlock(tool_call_id="1", tool_name="gone", tool_kwargs={"a": 1})
    history = [
        ChatMessage(TOLD),
        ChatMessage(blocks=[gone], role="assistant"),
        ChatMessage("2", role="tool", additional_kwargs={"tool_call_id": "another"}),
    ]
    assert str(await agent(llm).run("And now?", chat_history=history))
    assert [role for role, _ in stored(llm)] == ["user", "assistant", "tool", "user", "assistant"]


async def test_two_agents_on_one_session_at_once(llm: MemoryLLM) -> None:
    chat = AgentMem(llm=llm, user="ada", session="monday")
    await asyncio.gather(*(FunctionAgent(llm=chat).run(text) for text in (TOLD, "My cat is called Tom.")))
    assert sorted(text for role, text in stored(llm) if role == "user") == [
        "My cat is called Tom.",
        TOLD,
    ]


async def test_a_run_that_is_cancelled_stops_the_model(tmp_path: Path) -> None:
    with MemoryLLM(make_babbler(tmp_path / "model"), store=tmp_path / "memory.db", max_new_tokens=8000) as llm:
        handler = agent(llm).run("Go on and on.")
        heard = 0
        async for event in handler.stream_events():
            heard += isinstance(event, AgentStream)
            if heard == 5:
                await handler.cancel_run()
        with pytest.raises((WorkflowCancelledByUser, asyncio.CancelledError)):
            await handler
        for _ in range(500):
            if len(stored(llm)) == 2:
                break
            await asyncio.sleep(0.01)
        (_, (_, said)) = stored(llm)
        assert 0 < len(said.split()) < 1000


# -------------------------------------------------------------------------------------------------------------- memory


@asynccontextmanager
async def memory(llm: MemoryLLM, user: str = "ada", session: str = "monday", **more: Any) -> AsyncIterator[Memory]:
    """Of a short term that holds one exchange."""
    engine = create_async_engine("sqlite+aiosqlite://")
    blocks = [AgentMemBlock(llm=llm, user=user)]
    options = {"session_id": session, "token_limit": 40, "token_flush_size": 10, "async_engine": engine}
    yield Memory.from_defaults(memory_blocks=blocks, **options, **more)
    await engine.dispose()


async def test_a_block_keeps_what_leaves_the_dialogue_and_tells_it_tomorrow(tmp_path: Path) -> None:
    call = ToolCallBlock(tool_call_id="1", tool_name="weather", tool_kwargs={"city": "Lisbon"})
    told = [
        ChatMessage(TOLD),
        ChatMessage("That is a fine name for a dog, and I will try to remember it.", role="assistant"),
        ChatMessage("How is the weather in Lisbon this morning, and what will it be like?"),
        ChatMessage(blocks=[call], role="assistant"),
        ChatMessage("It rains.", role="tool", additional_kwargs={"tool_call_id": "1"}),
        ChatMessage("It rains, and it will go on raining for the whole day, I am afraid.", role="assistant"),
        ChatMessage("Thank you very much for telling me, I shall take an umbrella with me."),
        ChatMessage("Have a nice day.", role="assistant"),
    ]
    with MemoryLLM(store=tmp_path / "memory.db") as llm:
        async with memory(llm) as short:
            for message in told:
                await short.aput(message)
        assert stored(llm)[0] == ("user", TOLD)
        assert ("assistant", 'Calling weather with {"city": "Lisbon"}') in stored(llm)
        assert ("tool", "It rains.") in stored(llm)
        assert {m.scope.session for m in llm.memories(user="ada").list()} == {"monday"}
    with MemoryLLM(store=tmp_path / "memory.db") as llm:
        async with memory(llm, session="tuesday") as short:
            messages = await short.aget(input=ASKED)
        assert f"- {TOLD}" in messages[0].content
        assert messages[0].role == "system"
        async with memory(llm, user="bob", session="tuesday") as short:
            assert await short.aget(input=ASKED) == []


async def test_a_block_in_an_agent_of_another_model(llm: MemoryLLM) -> None:
    llm.memories(user="ada").add(TOLD)
    model = AgentMem(llm=llm, user="nobody", remember=False)
    seen: list[list[ChatMessage]] = []

    class Watched(FunctionAgent):
        async def take_step(self, ctx: Any, llm_input: Any, tools: Any, memory: Any) -> Any:
            seen.append(list(llm_input))
            return await super().take_step(ctx, llm_input, tools, memory)

    async with memory(llm, insert_method=InsertMethod.USER) as short:
        await Watched(llm=model).run(ASKED, memory=short)
    assert f"- {TOLD}" in seen[0][-1].content
    assert llm.memories(user="nobody").list() == []


async def test_a_block_tells_neither_what_is_shown_nor_what_does_not_matter(llm: MemoryLLM) -> None:
    block = AgentMemBlock(llm=llm, user="ada")
    llm.memories(user="ada").add(TOLD)
    assert await block.aget([ChatMessage(ASKED)]) == f"- {TOLD}"
    assert await block.aget([ChatMessage(TOLD), ChatMessage(ASKED)]) == ""
    assert await AgentMemBlock(llm=llm, user="ada", threshold=1000.0).aget([ChatMessage(ASKED)]) == ""
    for nothing in (None, [], [ChatMessage(" ")], [ChatMessage(TOLD, role="assistant")]):
        assert await block.aget(nothing) == ""
    await block.aput([ChatMessage("Be brief.", role="system"), ChatMessage(""), ChatMessage(role="assistant")])
    assert stored(llm) == [("user", TOLD)]
    with pytest.raises(InvalidInput):
        await block.aput([ChatMessage("a\x00b")])


# ---------------------------------------------------------------------------------------------------------- retrievers


async def test_the_retriever_keeps_to_its_user_and_filters(llm: MemoryLLM) -> None:
    llm.memories(user="ada").add("The tax form is due in May.", id="tax", tags=["work/tax"], meta={"year": 2026})
    llm.memories(user="ada").add("The tax form was due in June.", tags=["work/tax"], meta={"year": 2025})
    retriever = AgentMemRetriever(llm, user="ada", filters={"meta": {"year": 2026}})
    for found in (retriever.retrieve("tax form"), await retriever.aretrieve("tax form")):
        (one,) = found
        assert one.node.node_id == "tax"
        assert (one.node.text, one.node.metadata["year"]) == ("The tax form is due in May.", 2026)
        assert one.node.metadata["role"] == "user"
    assert AgentMemRetriever(llm, user="bob").retrieve("tax form") == []
    assert AgentMemRetriever(llm, user="ada", threshold=1000.0).retrieve("tax form") == []
    assert len(AgentMemRetriever(llm, user="ada", k=1).retrieve("tax form")) == 1


def test_a_query_engine_answers_from_it(llm: MemoryLLM) -> None:
    llm.memories(user="ada").add(TOLD)
    model = AgentMem(llm=llm, user="nobody", remember=False)
    engine = RetrieverQueryEngine.from_args(AgentMemRetriever(llm, user="ada", k=1), llm=model)
    answer = engine.query(ASKED)
    assert [source.text for source in answer.source_nodes] == [TOLD]
    assert str(answer)
