"""The memory service: against ADK's own, forgetting, users and apps, restarts, ADK's memory tools in real runs."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
from google.adk.events.event import Event
from google.adk.memory.in_memory_memory_service import InMemoryMemoryService
from google.adk.memory.memory_entry import MemoryEntry
from google.adk.models.llm_request import LlmRequest
from google.adk.sessions.session import Session
from google.adk.tools.load_memory_tool import LoadMemoryTool
from google.adk.tools.preload_memory_tool import PreloadMemoryTool
from google.genai import types
from running import APP, Bot, make_agent

from agentmem import InvalidInput, MemoryLLM

from google_adk_agentmem_kv import AgentMemMemoryService

TOLD = "My dog is called Biscuit."
ASKED = "What is my dog called?"
DELETES = hasattr(InMemoryMemoryService, "delete_memory")
"""ADK's own service does since 2.13."""
ADA: dict[str, Any] = {"app_name": APP, "user_id": "ada"}


def event(text: str, author: str = "user", **more: Any) -> Event:
    content = types.Content(role="user" if author == "user" else "model", parts=[types.Part(text=text)])
    return Event(author=author, content=content, **more)


def session(*events: Event, id: str = "monday", **whose: str) -> Session:
    return Session(id=id, events=list(events), **{**ADA, **whose})


@pytest.fixture
def service(llm: MemoryLLM) -> AgentMemMemoryService:
    return AgentMemMemoryService(llm)


async def found(service: Any, query: str = ASKED, **whose: str) -> list[str]:
    response = await service.search_memory(query=query, **{**ADA, **whose})
    return [entry.content.parts[0].text for entry in response.memories]


async def test_random_changes_leave_what_adks_own_service_has(llm: MemoryLLM) -> None:
    rng, ours, oracle = random.Random(7), AgentMemMemoryService(llm, k=100, threshold=None), InMemoryMemoryService()
    for number in range(4):
        whose = {"app_name": f"app{number % 2}", "user_id": f"user{number // 2}"}
        sessions = [session(id=f"{number}-{one}", **whose) for one in range(2)]
        for _ in range(12):
            here, kind = rng.choice(sessions), rng.randrange(4)
            entries = (await oracle.search_memory(query="tea", **whose)).memories
            if kind == 0 and entries and DELETES:
                text = rng.choice(entries).content.parts[0].text
                for one in (ours, oracle):
                    (entry,) = [
                        entry
                        for entry in (await one.search_memory(query="tea", **whose)).memories
                        if entry.content.parts[0].text == text
                    ]
                    await one.delete_memory(memory_id=entry.id, **whose)
                continue
            if len(sessions[0].events) + len(sessions[1].events) < 9:  # it finds no more than ten
                here.events.append(event(f"Tea number {rng.randrange(10**9)}.", rng.choice(["user", "bot"])))
            for one in (ours, oracle):
                if kind == 1:
                    await one.add_events_to_memory(events=here.events[-2:], session_id=here.id, **whose)
                else:
                    await one.add_session_to_memory(here)
        assert sorted(await found(ours, "tea", **whose)) == sorted(await found(oracle, "tea", **whose))


async def test_a_session_that_is_added_again_adds_what_is_new(llm: MemoryLLM, service: AgentMemMemoryService) -> None:
    told = event(TOLD)
    here = session(told, event("I will remember it.", "bot"))
    await service.add_session_to_memory(here)
    await asyncio.gather(*(service.add_session_to_memory(here) for _ in range(3)))
    memories = llm.memories(user="ada", agent=APP)
    assert [(m.role, m.scope.session) for m in memories.list(sort="created_at")] == [
        ("user", "monday"),
        ("assistant", "monday"),
    ]
    (entry, *_) = (await service.search_memory(query=ASKED, **ADA)).memories
    assert (entry.content.parts[0].text, entry.content.role, entry.author) == (TOLD, "user", "user")
    assert entry.timestamp.startswith("20")
    assert entry.custom_metadata["score"] > 0
    await service.delete_memory(memory_id=entry.id, **ADA)
    here.events.append(event("My cat is called Tom."))
    await service.add_session_to_memory(here)
    assert [m.text for m in memories.list(role="user")] == ["My cat is called Tom."]
    await service.delete_memory(memory_id=entry.id, **ADA)
    await service.delete_memory(**ADA)
    assert len(memories) == 2


async def test_users_and_apps_are_apart_and_a_restart_changes_nothing(tmp_path: Path) -> None:
    with MemoryLLM(store=tmp_path / "memory.db") as llm:
        await AgentMemMemoryService(llm).add_session_to_memory(session(event(TOLD)))
    with MemoryLLM(store=tmp_path / "memory.db") as llm:
        service = AgentMemMemoryService(llm)
        assert await found(service) == [TOLD]
        for other in ({"user_id": "bob"}, {"app_name": "other"}):
            assert await found(service, **other) == []
            (entry,) = (await service.search_memory(query=ASKED, **ADA)).memories
            await service.delete_memory(memory_id=entry.id, **{**ADA, **other})
        assert await found(service) == [TOLD]


async def test_only_words_are_remembered(llm: MemoryLLM, service: AgentMemMemoryService) -> None:
    call = types.Part(function_call=types.FunctionCall(name="look", args={}))
    image = types.Part(inline_data=types.Blob(data=b"GIF89a", mime_type="image/gif"))
    mixed = types.Content(role="user", parts=[image, types.Part(text="A picture of Biscuit.")])
    thought = types.Content(role="model", parts=[types.Part(text="Hm.", thought=True), call])
    here = session(
        Event(author="bot"),
        Event(author="bot", content=types.Content(role="model")),
        Event(author="bot", content=thought),
        Event(author="user", content=mixed),
        event("My dog", "bot", partial=True),
        event(" "),
    )
    await service.add_session_to_memory(here)
    assert [m.text for m in llm.memories(user="ada", agent=APP).list()] == ["A picture of Biscuit."]


async def test_a_long_event_is_forgotten_whole(llm: MemoryLLM, service: AgentMemMemoryService) -> None:
    await service.add_session_to_memory(
        session(event(" ".join(f"Drawer {n} holds the keys of house {n}." for n in range(60))))
    )
    memories = llm.memories(user="ada", agent=APP)
    assert len(memories) > 2
    entry = (await service.search_memory(query="Which drawer holds the keys of house 41?", **ADA)).memories[0]
    await service.delete_memory(memory_id=entry.id, **ADA)
    assert len(memories) == 0


async def test_metadata_goes_along(llm: MemoryLLM, service: AgentMemMemoryService) -> None:
    more = {"topic": "pets", "ttl": "12h"}
    await service.add_events_to_memory(events=[event(TOLD)], custom_metadata=more, **ADA)
    (entry,) = (await service.search_memory(query=ASKED, **ADA)).memories
    assert entry.custom_metadata["topic"] == "pets"
    (memory,) = llm.memories(user="ada", agent=APP).list(meta={"topic": "pets"})
    assert memory.expires_at is not None
    with pytest.raises(InvalidInput):
        await service.add_events_to_memory(events=[event("x")], custom_metadata={"ttl": "soon"}, **ADA)
    with pytest.raises(InvalidInput):
        await service.add_events_to_memory(events=[event("x")], custom_metadata={"odd": object()}, **ADA)


async def test_entries_can_be_written_as_they_are(llm: MemoryLLM, service: AgentMemMemoryService) -> None:
    content = types.Content(parts=[types.Part(text=TOLD)])
    entry = MemoryEntry(id="dog", content=content, author="vet", custom_metadata={"topic": "pets"})
    for _ in range(2):
        await service.add_memory(memories=[entry, MemoryEntry(content=types.Content())], **ADA)
    (same,) = (await service.search_memory(query=ASKED, **ADA)).memories
    assert (same.id, same.author, same.custom_metadata["topic"]) == ("dog", "vet", "pets")
    with pytest.raises(InvalidInput, match="dog"):
        await service.add_memory(
            memories=[MemoryEntry(id="dog", content=types.Content(parts=[types.Part(text="No.")]))], **ADA
        )
    await service.delete_memory(memory_id="dog", **ADA)
    await service.add_memory(memories=[entry], **ADA)  # who writes it by its id means it
    assert await found(service) == [TOLD]


async def test_nothing_is_found_of_nothing(service: AgentMemMemoryService) -> None:
    assert await found(service) == []
    await service.add_session_to_memory(session(event(TOLD)))
    assert await found(service, " ") == []
    assert await found(AgentMemMemoryService(service._llm, threshold=1000.0)) == []


# ------------------------------------------------------------------------------------------------------ ADK's own tools


async def test_memory_is_preloaded(llm: MemoryLLM, service: AgentMemMemoryService) -> None:
    seen: list[LlmRequest] = []

    def look(callback_context: Any, llm_request: LlmRequest) -> None:
        seen.append(llm_request)

    def bot() -> Bot:
        agent = make_agent(llm, PreloadMemoryTool(), remember=False, before_model_callback=look)
        return Bot(agent, service)

    first = bot()
    await first.ask("ada", TOLD)
    await service.add_session_to_memory(await first.sessions.get_session(session_id="monday", **ADA))
    for user in ("ada", "bob"):
        await bot().ask(user, ASKED, "tuesday")
    told = [str(request.contents) + str(request.config.system_instruction) for request in seen]
    assert [TOLD in text and "PAST_CONVERSATIONS" in text for text in told] == [False, True, False]


async def test_memory_is_loaded_by_the_model(llm: MemoryLLM, service: AgentMemMemoryService) -> None:
    await service.add_session_to_memory(session(event(TOLD)))
    bot = Bot(make_agent(llm, LoadMemoryTool(), remember=False), service)
    events = [one async for one in bot.events("ada", "Load the memory for dog.", "tuesday")]
    (response,) = events[1].get_function_responses()
    assert response.name == "load_memory"
    assert TOLD in str(response.response)
    assert events[-1].is_final_response()
    assert [m.text for m in llm.memories(user="ada", agent=APP).list()] == [TOLD]


async def test_the_model_reads_what_the_service_keeps(llm: MemoryLLM, service: AgentMemMemoryService) -> None:
    await service.add_session_to_memory(session(event(TOLD)))
    assert await Bot(make_agent(llm, remember=False)).ask("ada", ASKED) == "Your dog is called Biscuit."
    assert "Biscuit" not in await Bot(make_agent(llm, remember=False)).ask("bob", ASKED)
