"""Sessions against the SDK's own ``SQLiteSession``, several hands at once, restarts, limits, bad input."""

from __future__ import annotations

import asyncio
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from agents import Agent, Runner, SessionSettings, SQLiteSession, function_tool
from agents.memory import Session
from agents.testing import ScriptedModel, assistant_message, function_call
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentmem import InvalidInput, MemoryLLM

from agentmem_contract import python
from openai_agents_agentmem_kv import AgentMemSession

texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
plain = st.recursive(st.none() | st.booleans() | st.integers(-9, 9) | texts, lambda one: st.lists(one, max_size=2))
items = st.builds(lambda text, more: {"role": "user", "content": text, "more": more}, texts, plain)
operations = st.lists(
    st.tuples(st.just("add_items"), st.lists(items, max_size=4))
    | st.tuples(st.just("get_items"), st.sampled_from([None, -1, 0, 1, 2, 7]))
    | st.tuples(st.sampled_from(["pop_item", "pop_item", "pop_item", "clear_session"])),
    max_size=25,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(operations=operations, limit=st.sampled_from([None, None, 0, 3]))
def test_random_operations_give_what_the_sdks_own_session_gives(
    llm: MemoryLLM, operations: list[tuple[Any, ...]], limit: int | None
) -> None:
    async def both() -> None:
        name, shown = uuid4().hex, SessionSettings(limit=limit)
        oracle = SQLiteSession(name, session_settings=shown)
        session = AgentMemSession(name, llm, user="ada", session_settings=shown)
        for method, *arguments in [*operations, ("get_items", None), ("get_items", 100)]:
            expected = await getattr(oracle, method)(*arguments)
            assert await getattr(session, method)(*arguments) == expected, method
        oracle.close()

    asyncio.run(both())


def said(*texts: object) -> list[Any]:
    return [{"role": "user", "content": str(text)} for text in texts]


async def test_it_is_a_session_of_its_user(llm: MemoryLLM) -> None:
    session = AgentMemSession("monday", llm, user="ada")
    assert isinstance(session, Session)
    await session.add_items(said("one"))
    for other in (
        AgentMemSession("monday", llm, user="bob"),
        AgentMemSession("monday", llm, user="ada", agent="cook"),
        AgentMemSession("mon", llm, user="ada"),
    ):
        assert await other.get_items() == []
        await other.clear_session()
    assert await AgentMemSession("monday", llm, user="ada").get_items() == said("one")


async def test_a_transcript_is_no_memory(llm: MemoryLLM) -> None:
    @function_tool
    def read_file() -> str:
        return "0123456789abcdef" * 2**16  # 1 MB

    session = AgentMemSession("monday", llm, user="ada")
    model = ScriptedModel([[function_call("read_file", {}, call_id="1")], [assistant_message("It is long.")]])
    result = await Runner.run(Agent(name="bot", model=model, tools=[read_file]), "Read it!", session=session)
    assert result.final_output == "It is long."
    kept = await AgentMemSession("monday", llm, user="ada").get_items()
    assert kept == result.to_input_list()
    assert len(kept[2]["output"]) == 2**20
    assert llm.memories(user="ada").list() == []


async def test_more_than_a_page(llm: MemoryLLM) -> None:
    session = AgentMemSession("monday", llm, user="ada")
    many = said(*range(2500))
    await session.add_items(many)
    assert await session.get_items() == many
    assert await session.get_items(1700) == many[-1700:]


@pytest.mark.parametrize("bad", [object(), float("nan"), b"bytes", "\ud83d"])
async def test_what_is_no_json_is_refused_whole(llm: MemoryLLM, bad: Any) -> None:
    session = AgentMemSession("monday", llm, user="ada")
    with pytest.raises(InvalidInput):
        await session.add_items([*said("one"), {"role": "user", "content": bad}])
    assert await session.get_items() == []


@pytest.mark.parametrize("name", ["", "a\0b", "a" * 513])
async def test_a_name_that_cannot_be_used_is_refused(llm: MemoryLLM, name: str) -> None:
    with pytest.raises(InvalidInput):
        await AgentMemSession(name, llm, user="ada").get_items()


async def test_who_is_cancelled_leaves_all_or_nothing(llm: MemoryLLM) -> None:
    session = AgentMemSession("monday", llm, user="ada")
    for number in range(20):
        task = asyncio.create_task(session.add_items(said(*range(50))))
        await asyncio.sleep(number * 0.0002)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        before = await session.get_items()
        await asyncio.sleep(0.005)
        assert await session.get_items() == before  # nothing is written behind the back of who was cancelled
        assert len(before) % 50 == 0
    assert await session.get_items()


WORK = """
import asyncio, sys
from agentmem import MemoryLLM
from openai_agents_agentmem_kv import AgentMemSession

async def work(session, who):
    for number in range(40):
        await session.add_items([{"role": "user", "content": f"{who} {number} {part}"} for part in range(3)])

with MemoryLLM(store=sys.argv[1]) as llm:
    asyncio.run(work(AgentMemSession("monday", llm, user="ada"), sys.argv[2]))
"""


def test_two_processes_at_once_lose_and_double_nothing(tmp_path: Path) -> None:
    script, store = tmp_path / "work.py", tmp_path / "memory.db"
    script.write_text(WORK, "utf-8")
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda who: python(script, store, who), ("one", "two")))
    with MemoryLLM(store=store) as llm:
        kept = [item["content"] for item in asyncio.run(AgentMemSession("monday", llm, user="ada").get_items())]
    for who in ("one", "two"):
        mine = [text for text in kept if text.startswith(who)]
        assert mine == [f"{who} {number} {part}" for number in range(40) for part in range(3)]
    groups = [kept[start : start + 3] for start in range(0, len(kept), 3)]
    assert all(len({text.rsplit(" ", 1)[0] for text in group}) == 1 for group in groups)


async def test_items_that_several_pop_are_popped_once(llm: MemoryLLM) -> None:
    sessions = [AgentMemSession("monday", llm, user="ada") for _ in range(4)]
    popped: list[Any] = []

    async def add(session: AgentMemSession, who: int) -> None:
        for number in range(10):
            await session.add_items(said((who, number), (who, -number - 1)))

    async def pop(session: AgentMemSession) -> None:
        for _ in range(12):
            popped.append(await session.pop_item())

    await asyncio.gather(add(sessions[0], 0), add(sessions[1], 1), pop(sessions[2]), pop(sessions[3]))
    found = Counter(item["content"] for item in [*popped, *await sessions[0].get_items()] if item)
    assert found == Counter(str((who, n)) for who in (0, 1) for n in range(-10, 10))
