"""The store of conversations: as Pydantic AI's own in memory, but for good, and by several writers at once."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from pydantic_ai import Agent, Conversation, DeferredToolRequests, RunUsage, Tool
from pydantic_ai.conversation_store import ConversationConflict, ConversationStore, InMemoryConversationStore
from pydantic_ai.exceptions import UserError
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextPart, ToolCallPart, ToolReturnPart

from agentmem import MemoryLLM

from pydantic_ai_agentmem_kv import AgentMemConversationStore, AgentMemModel


@pytest.fixture
def llm(tmp_path: Path) -> Iterator[MemoryLLM]:
    with MemoryLLM(store=tmp_path / "memory.db") as opened:
        yield opened


@pytest.fixture
def store(llm: MemoryLLM) -> AgentMemConversationStore:
    return AgentMemConversationStore(llm, user="ada")


def turn(number: int) -> list[ModelMessage]:
    return [ModelRequest.user_text_prompt(f"Question {number}?"), ModelResponse([TextPart(f"Answer {number}.")])]


def left_of(llm: MemoryLLM, user: str = "ada") -> list[Any]:
    """Keys that the log has of conversations and messages."""
    return [entry.key[1:] for entry in llm.log(user=user).scan("pydantic-ai", limit=1000) if len(entry.key) == 3]


async def test_a_conversation_goes_on_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    with MemoryLLM(store=path) as llm:
        run = await Agent(AgentMemModel(llm, user="ada")).run("My dog is called Biscuit.")
        saved = await AgentMemConversationStore(llm, user="ada").save(run, scope="web")
        assert [entry.message for entry in saved] == run.all_messages()
    with MemoryLLM(store=path) as llm:
        store = AgentMemConversationStore(llm, user="ada")
        (record,) = await store.list_conversations(scope="web")
        loaded = await store.load(record.conversation_id)
        assert loaded is not None
        assert loaded.messages == run.all_messages()
        again = await Agent(AgentMemModel(llm, user="ada")).run("What is my dog called?", conversation=loaded)
        assert again.output == "Your dog is called Biscuit."
        await store.save(again)
        assert len(await store.load_entries(record.conversation_id) or ()) == 4
        assert len(llm.memories(user="ada")) == 4
        assert (await store.load(record.conversation_id)).usage == again.conversation.usage


async def test_of_two_runs_on_one_conversation_at_once_one_is_saved(
    llm: MemoryLLM, store: AgentMemConversationStore
) -> None:
    agent = Agent(AgentMemModel(llm, user="ada"))
    await store.save(await agent.run("Hello!", conversation_id="monday"))

    async def go_on(text: str) -> Any:
        run = await agent.run(text, conversation=await store.load("monday"))
        return await store.save(run)

    done = await asyncio.gather(go_on("My dog is Biscuit."), go_on("My cat is Tom."), return_exceptions=True)
    (lost,) = [one for one in done if isinstance(one, ConversationConflict)]
    assert lost.conversation_id == "monday"
    loaded = await store.load("monday")
    assert loaded is not None
    assert len(loaded.messages) == 4
    assert len(left_of(llm)) == 5, "of a save that is refused nothing is left"

    run = await agent.run("My cat is Tom.", conversation=loaded)
    await store.save(run)
    assert len((await store.load("monday")).messages) == 6


async def test_a_conversation_that_is_known_or_gone_is_not_saved_over(store: AgentMemConversationStore) -> None:
    first = Conversation(messages=turn(1), conversation_id="monday")
    await store.save(first)
    with pytest.raises(ConversationConflict):
        await store.save(Conversation(messages=turn(2), conversation_id="monday"))
    await store.delete("monday")
    with pytest.raises(ConversationConflict):
        await store.save(first)
    assert await store.load("monday") is None


def test_writers_in_many_threads(llm: MemoryLLM, store: AgentMemConversationStore) -> None:
    asyncio.run(store.save(Conversation(messages=turn(0), conversation_id="monday")))
    wins: list[int] = []
    barrier = threading.Barrier(6)

    def write(number: int) -> None:
        for step in range(5):
            loaded = asyncio.run(store.load("monday"))
            barrier.wait(60)
            loaded.messages += turn(100 * number + step)
            try:
                asyncio.run(store.save(loaded))
            except ConversationConflict:
                continue
            finally:
                barrier.wait(60)
            wins.append(step)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(wins) == [0, 1, 2, 3, 4], "one of six, each time"
    assert len(asyncio.run(store.load("monday")).messages) == 12
    assert len(left_of(llm)) == 13


def test_forks_and_deletes_at_once_leave_whole_conversations(llm: MemoryLLM, store: AgentMemConversationStore) -> None:
    asyncio.run(store.save(Conversation(messages=[m for n in range(5) for m in turn(n)], conversation_id="c-0")))
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        dice = random.Random(seed)
        for step in range(12):
            try:
                there = [record.conversation_id for record in asyncio.run(store.list_conversations())]
                chosen = dice.choice(there)
                if dice.random() < 0.55:
                    asyncio.run(store.fork(chosen, at=dice.randrange(1, 10), new_conversation_id=f"c-{seed}-{step}"))
                elif chosen != "c-0":
                    asyncio.run(store.delete(chosen))
            except (ConversationConflict, UserError):
                pass  # it was deleted meanwhile, or has fewer messages
            except BaseException as error:  # noqa: BLE001
                failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    for record in asyncio.run(store.list_conversations()):
        loaded = asyncio.run(store.load(record.conversation_id))
        assert [str(m.parts[0].content)[-2:] for m in loaded.messages][:4] == ["0?", "0.", "1?", "1."][
            : len(loaded.messages)
        ]
        asyncio.run(store.delete(record.conversation_id))
    assert left_of(llm) == []


async def outcome(store: ConversationStore, op: str, name: str, **more: Any) -> Any:
    """What an operation comes to, in terms that two stores have in common."""
    try:
        if op == "load":
            loaded = await store.load(name, **more)
            return loaded and (loaded.messages, loaded.usage, loaded.deferred_tool_requests)
        if op == "list":
            return [
                (r.conversation_id, r.scope, r.forked_from, len(r.branches))
                for r in await store.list_conversations(**more)
            ]
        if op == "delete":
            return await store.delete(name, **more)
        if op in ("fork", "branch"):
            if op == "branch":
                record = await store.read_record(name)
                more["expected_revision"] = record and record.revision
            return (await getattr(store, op)(name, **more)).messages
        loaded = await store.load(name) if more["known"] else None
        conversation = loaded or Conversation(conversation_id=name)
        if more["rewritten"]:
            conversation.messages = conversation.messages[: more["rewritten"]]
            conversation.new_message_index = None
        conversation.messages = [*conversation.messages, *deepcopy(more["messages"])]
        conversation.usage = conversation.usage + RunUsage(requests=1, input_tokens=7)
        return [entry.message for entry in await store.save(conversation, scope=more["scope"])]
    except (UserError, ConversationConflict) as error:
        return type(error)


@pytest.mark.parametrize("seed", range(4))
async def test_as_the_store_in_memory(llm: MemoryLLM, seed: int) -> None:
    dice = random.Random(seed)
    mine, theirs = AgentMemConversationStore(llm, user=f"user-{seed}"), InMemoryConversationStore()
    for step in range(120):
        op = dice.choice(["save", "save", "save", "load", "list", "delete", "fork", "branch"])
        name = dice.choice("abcd")
        more: dict[str, Any] = {}
        if op == "save":
            more = {
                "known": dice.random() < 0.9,
                "rewritten": dice.choice([0, 0, 2]),
                "messages": turn(step),
                "scope": dice.choice([None, None, "web"]),
            }
        elif op == "load":
            more = {"limit": dice.choice([None, 0, 1, 3]), "scope": dice.choice([None, "web"])}
        elif op == "list":
            more = {"limit": dice.choice([None, 2]), "scope": dice.choice([None, "web"])}
        elif op == "fork":
            more = {"at": dice.choice([None, 1, 2, 5]), "new_conversation_id": dice.choice("abcde")}
        elif op == "branch":
            more = {"at": dice.choice([0, 1, 2])}
        assert await outcome(mine, op, name, **more) == await outcome(theirs, op, name, **more), (step, op, name, more)
    kept = left_of(llm, f"user-{seed}")
    assert {name for kind, name in kept if kind == "record"} == theirs._records.keys()
    assert len([name for kind, name in kept if kind == "entry"]) == len(theirs._entries)


async def test_a_run_that_waits_for_approval_is_kept(llm: MemoryLLM, store: AgentMemConversationStore) -> None:
    def report(city: str) -> str:
        """The weather in a city."""
        return f"It rains in {city}."

    agent = Agent(
        AgentMemModel(llm, user="ada"),
        tools=[Tool(report, requires_approval=True)],
        output_type=[str, DeferredToolRequests],
    )
    paused = await agent.run("How is the weather in Lisbon?", conversation_id="monday")
    await store.save(paused)
    loaded = await store.load("monday")
    assert loaded is not None
    assert loaded.deferred_tool_requests == paused.output
    results = loaded.deferred_tool_requests.build_results(approve_all=True)
    run = await agent.run(conversation=loaded, deferred_tool_results=results)
    await store.save(run)
    kept = [
        part.content
        for m in (await store.load("monday")).messages
        for part in m.parts
        if isinstance(part, ToolReturnPart)
    ]
    assert kept == ["It rains in Lisbon."]


async def test_a_conversation_of_thousands_of_messages(llm: MemoryLLM, store: AgentMemConversationStore) -> None:
    long = [message for number in range(1200) for message in turn(number)]
    await store.save(Conversation(messages=long, conversation_id="long"))
    loaded = await store.load("long")
    assert loaded is not None
    assert loaded.messages == long
    assert [m.parts[0].content for m in (await store.load("long", limit=3)).messages] == [
        "Answer 1198.",
        "Question 1199?",
        "Answer 1199.",
    ]
    with pytest.raises(ConversationConflict):
        await store.save(Conversation(messages=long, conversation_id="long"))
    await store.delete("long")
    assert left_of(llm) == []


async def test_results_of_tools_come_back_as_json_has_them(store: AgentMemConversationStore) -> None:
    messages: list[ModelMessage] = [
        ModelResponse([ToolCallPart("look", {"deep": {"er": [1, None]}}, tool_call_id="1")]),
        ModelRequest(
            [ToolReturnPart("look", b"\xff\x00", tool_call_id="1"), ToolReturnPart("x", "ü" * 2**20, tool_call_id="2")]
        ),
    ]
    await store.save(Conversation(messages=messages, conversation_id="odd"))
    loaded = await store.load("odd")
    assert loaded is not None
    assert loaded.messages[0] == messages[0]
    assert loaded.messages[1].parts[0].content == "_wA="
    assert loaded.messages[1].parts[1].content == "ü" * 2**20


async def test_users_are_apart_and_nothing_is_recalled(llm: MemoryLLM, store: AgentMemConversationStore) -> None:
    entries = await store.save(Conversation(messages=turn(1), conversation_id="monday"))
    bob = AgentMemConversationStore(llm, user="bob")
    assert await bob.load("monday") is None
    assert await bob.list_conversations() == []
    with pytest.raises(LookupError):
        await bob.read_entry(entries[0].id)
    assert await store.read_entry(entries[0].id) == entries[0]
    assert len(llm.memories(user="ada")) == 0
