"""Replies in event loops: pieces as they come, cancelled tasks, many at once, and a loop that is never held up."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentmem import InvalidInput, MemoryLLM

LONG = {"max_new_tokens": 20_000}


@pytest.fixture(scope="module")
def llm(babbler: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MemoryLLM]:
    """A model that would speak for minutes."""
    with MemoryLLM(babbler, store=tmp_path_factory.mktemp("async") / "memory.db", max_new_tokens=8) as llm:
        yield llm


def generating() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name in ("agentmem-reply", "agentmem-generate")]


async def until_still() -> None:
    for _ in range(200):
        if not generating():
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"still generating: {generating()}")


def test_pieces_come_while_the_loop_goes_on(llm: MemoryLLM) -> None:
    async def main() -> None:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.001)
                ticks += 1

        ticking = asyncio.create_task(tick())
        stream = llm.conversation(user="ada").astream("Hello!", max_new_tokens=100)
        with pytest.raises(InvalidInput, match="not complete"):
            _ = stream.reply
        pieces = [piece async for piece in stream]
        ticking.cancel()
        assert len(pieces) > 50
        assert "".join(pieces).strip() == stream.reply.text
        assert ticks > 5
        with pytest.raises(StopAsyncIteration):
            await stream.__anext__()

    asyncio.run(main())


def test_closing_stops_and_remembers(llm: MemoryLLM) -> None:
    async def main() -> None:
        conversation = llm.conversation(user="close")
        async with conversation.astream("Hello!", **LONG) as stream:
            async for _ in stream:
                break
        await until_still()
        assert stream.reply.finish_reason == "cancelled"
        assert {memory.role.value for memory in conversation.memories.list()} == {"user", "assistant"}
        unread = conversation.astream("Hello again!")
        await unread.aclose()
        assert [piece async for piece in unread] == []
        assert len(conversation.memories) == 2

    asyncio.run(main())


def test_a_cancelled_task_stops_generating(llm: MemoryLLM) -> None:
    async def main() -> None:
        conversation = llm.conversation(user="cancel")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(conversation.achat("Hello!", **LONG), timeout=0.3)
        began = time.monotonic()
        await until_still()
        assert time.monotonic() - began < 5
        assert (await conversation.achat("And now?")).finish_reason == "length"

    asyncio.run(main())


def test_a_stream_that_is_dropped_stops(llm: MemoryLLM) -> None:
    async def main() -> None:
        stream = llm.conversation(user="drop").astream("Hello!", **LONG)
        await anext(stream)
        del stream
        gc.collect()
        await until_still()

    asyncio.run(main())


def test_many_at_once_on_one_conversation(llm: MemoryLLM) -> None:
    """Two agents on one session: each turn waits for the one before it."""

    async def main() -> None:
        conversation = llm.conversation(user="many", session="s")
        replies = await asyncio.gather(*(conversation.achat(f"Number {n}.") for n in range(8)))
        assert len({reply.turn for reply in replies}) == 8
        said = [memory for memory in conversation.memories.list(limit=100) if memory.role.value == "user"]
        assert sorted(memory.text for memory in said) == [f"Number {n}." for n in range(8)]

    asyncio.run(main())


def test_bad_input_is_raised_where_it_is_awaited(llm: MemoryLLM) -> None:
    async def main() -> None:
        with pytest.raises(InvalidInput, match="tools"):
            await llm.conversation(user="bad").achat("Hello!", tools=3)
        stream = llm.conversation(user="bad").astream("")
        with pytest.raises(InvalidInput, match="empty"):
            await anext(stream)
        await stream.aclose()

    asyncio.run(main())


def test_a_loop_that_ends_early_leaves_nothing_running(llm: MemoryLLM) -> None:
    async def main() -> None:
        stream = llm.conversation(user="early").astream("Hello!", **LONG)
        kept.append(stream)
        await anext(stream)

    kept: list[object] = []
    asyncio.run(main())
    deadline = time.monotonic() + 10
    while generating() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not generating()
