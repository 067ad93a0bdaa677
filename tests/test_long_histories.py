"""Agents that run for long: whole lists, results longer than the window, and what goes wrong on the way."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from agentmem import InvalidInput, MemoryLLM, Message, Tier, conversation, writer

TASK = {"role": "user", "content": "Please look after the orders."}


def call(step: int) -> dict[str, Any]:
    function = {"name": "look", "arguments": json.dumps({"step": step})}
    return {"role": "assistant", "content": None, "tool_calls": [{"id": f"c{step}", "function": function}]}


def result(step: int, content: Any) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": f"c{step}", "content": content}


def steps(first: int, last: int, values: dict[int, str] | None = None) -> list[dict[str, Any]]:
    """Calls and their results; a step's value stands in front of what else the tool said."""
    made = []
    for step in range(first, last):
        rng = random.Random(step)
        said = f'{{"status": "available", "seats": {rng.randrange(999)}, "price": {rng.randrange(999)}}}'
        made += [call(step), result(step, "\n".join([*([values[step]] if values and step in values else []), said]))]
    return made


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


@pytest.fixture
def llm(tmp_path: Path) -> Iterator[MemoryLLM]:
    with MemoryLLM(store=tmp_path / "memory.db", max_new_tokens=4) as llm:
        yield llm


# --------------------------------------------------------------------------------------------------- hundreds of steps


@pytest.mark.parametrize("whole", [True, False], ids=["whole list", "new messages"])
def test_a_value_of_the_third_step_is_answered_hundreds_of_steps_later(llm: MemoryLLM, whole: bool) -> None:
    agent = llm.conversation(user="agent", session="loop")
    values = {3: "tracking number: 8841", 81: "case number: 6378"}
    messages, turn = [TASK], None
    for first in range(1, 201, 25):
        new = steps(first, first + 25, values)
        messages += new
        turn = agent.chat(messages if whole or turn is None else new, after=None if whole else turn).turn
    for question, answer in (
        ("What is the tracking number?", "The tracking number is 8841."),
        ("What is the case number?", "The case number is 6378."),
    ):
        asked = [*messages, user(question)] if whole else [user(question)]
        reply = agent.chat(asked, after=None if whole else turn, max_new_tokens=24, remember=False)
        assert reply.text == answer
        assert reply.usage.prompt_tokens <= llm.window_tokens
    assert len(agent.memories) >= 401


class Work:
    """What turns do: statements sent to the database, texts embedded, tokens that prompts and answers read."""

    def __init__(self, llm: MemoryLLM, monkeypatch: pytest.MonkeyPatch) -> None:
        self.statements = self.tokens = 0
        self.embedded: list[str] = []
        self._llm, embed = llm, llm.writer.embedder.embed
        me = threading.main_thread()

        def note(*_: Any) -> None:
            self.statements += threading.current_thread() is me

        def read(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
            if threading.current_thread().name == "agentmem-generate":
                self.tokens += kwargs["input_ids"].shape[1]

        sa.event.listen(sa.Engine, "before_cursor_execute", note)
        handle = llm.model.model.base_model.register_forward_pre_hook(read, with_kwargs=True)
        self.end = lambda: (sa.event.remove(sa.Engine, "before_cursor_execute", note), handle.remove())
        monkeypatch.setattr(llm.writer.embedder, "embed", lambda texts: self.embedded.extend(texts) or embed(texts))

    def of(self, turn: Any) -> tuple[int, int, list[str]]:
        self.statements, self.tokens, self.embedded = 0, 0, []
        turn()
        assert self._llm.flush(60)
        return self.statements, self.tokens, self.embedded


def test_a_step_does_as_much_work_late_as_early(llm: MemoryLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = llm.conversation(user="agent", session="loop")
    messages, work = [TASK], Work(llm, monkeypatch)
    done: dict[int, list[tuple[int, int, list[str]]]] = {}
    try:
        for first, last in ((1, 14), (14, 214), (214, 227)):
            if last - first > 100:  # on the way, many steps come at once
                messages += steps(first, last)
                agent.chat(messages)
                assert llm.flush(60)
                continue
            for step in range(first, last):
                messages += steps(step, step + 1)
                sent = [dict(message) for message in messages]
                done.setdefault(first, []).append(work.of(partial(agent.chat, sent)))
    finally:
        work.end()
    early, late = done[1][5:], done[214]
    for number in range(2):
        most = [max(one[number] for one in some) for some in (early, late)]
        assert most[1] <= 1.2 * most[0]
    for _, tokens, embedded in late:
        assert sum('"status"' in text for text in embedded) == 2  # the query, and the new result: none of the others
        assert tokens <= llm.window_tokens + 8
    # While the window stays where it begins, only what is new in it is read: one step, and the last one's end.
    assert sorted(tokens for _, tokens, _ in late)[len(late) // 2] < llm.window_tokens // 2


def test_replies_are_those_of_an_agent_that_was_just_started(tmp_path: Path) -> None:
    """KV that is kept between steps changes nothing."""
    with MemoryLLM(store=tmp_path / "memory.db", max_new_tokens=12, top_k=0) as llm:
        agent, messages, replies = llm.conversation(user="agent", session="loop"), [TASK], []
        for step in range(1, 5):
            messages += steps(step, step + 1)
            replies.append(agent.chat(messages).text)
        assert len(llm.prefixes) == 1
        llm.prefixes.clear()
        fresh, messages = llm.conversation(user="other", session="loop"), [TASK]
        for step, reply in enumerate(replies, 1):
            messages += steps(step, step + 1)
            llm.prefixes.clear()
            assert fresh.chat(messages).text == reply


def test_a_conversation_that_is_made_for_each_step_goes_on_from_the_last_window(
    llm: MemoryLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a server does."""
    work, messages, read = Work(llm, monkeypatch), [TASK], []
    try:
        for step in range(1, 4):
            messages += steps(step, step + 1)
            agent = llm.conversation(user="agent", session="loop")
            read.append(work.of(partial(agent.chat, list(messages)))[1])
    finally:
        work.end()
    prompts = [len(llm.model.chat.render([Message.model_validate(one) for one in messages[:n]])) for n in (3, 5, 7)]
    assert read[0] >= prompts[0]
    assert read[2] < prompts[2] - prompts[0]


@pytest.mark.parametrize("kept", [2, 4, 5])
def test_an_agent_that_keeps_its_last_messages_stores_each_once(llm: MemoryLLM, kept: int) -> None:
    messages = [TASK]
    long = "tracking number: 8841" + "\nAll is well." * 80  # several chunks
    for step in range(6):
        messages += steps(step, step + 1, {3: long})
        # a framework makes a conversation for each request
        reply = llm.conversation(user="agent", session="loop").chat(messages[-kept:])
        messages.append(reply.message.openai())
    memories = llm.memories(user="agent").list(limit=1000)
    said = [memory.text for memory in memories if memory.chunk_no == 0]
    assert len({memory.turn for memory in memories}) == len(said) == len(messages) - (kept == 2)
    assert said.count(next(text for text in said if text.startswith("tracking number"))) == 1


def test_an_edited_message_begins_another_branch(llm: MemoryLLM) -> None:
    agent = llm.conversation(user="agent", session="loop")
    messages = [TASK, *steps(1, 8, {2: "tracking number: 1111"})]
    agent.chat(messages)
    before = {memory.id for memory in agent.memories.list(limit=100)}
    edited = [*messages[:4], result(2, "tracking number: 2222"), *messages[5:]]
    agent.chat(edited)
    new = [memory.text for memory in agent.memories.list(limit=100) if memory.id not in before]
    assert "tracking number: 2222" in new
    assert len(new) == len(messages) - 4 + 1  # from the edited one on, and the reply
    assert before <= {memory.id for memory in agent.memories.list(limit=100)}  # the old ones are memories still
    agent.chat(messages)
    assert len(agent.memories) == len(before) + len(new)  # both are known


def test_forgetting_frees_the_window_that_is_kept(tmp_path: Path) -> None:
    with MemoryLLM(store=tmp_path / "memory.db", max_new_tokens=4) as llm:
        messages = [TASK, *steps(1, 4)]
        agents = [llm.conversation(user=name, session="loop") for name in ("ada", "bob")]
        for _ in range(2):
            for agent in agents:
                agent.chat(messages)
        assert len(llm.prefixes) == 2
        agents[0].memories.delete(agents[0].memories.list(limit=1)[0].id)
        assert len(llm.prefixes) == 1
        with MemoryLLM(store=tmp_path / "memory.db") as other:  # another process
            theirs = other.conversation(user="bob").memories
            theirs.delete(theirs.list(limit=1)[0].id)
        agents[0].chat([*messages, *steps(4, 5)])
        assert llm.prefixes.of(agents[1].memories._handle.space, "loop") is None


# ------------------------------------------------------------------------------------------------------- large results


def test_a_value_in_the_middle_of_a_large_result_is_answered(llm: MemoryLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "WARM", 16)
    filler = ["The garden looks beautiful this year.", "I had three meetings today.", "The train was late again."]
    rng = random.Random(0)
    lines = [f"{rng.choice(filler)} {rng.choice(filler)}" for _ in range(900)]
    lines[450] = "tracking number: 8841"
    agent = llm.conversation(user="agent", session="loop")
    messages = [TASK, call(1), result(1, "\n".join(lines))]
    reply = agent.chat(messages)
    assert "readable as memory" in " ".join(reply.notes)
    assert reply.usage.prompt_tokens <= llm.window_tokens
    stats = agent.memories.stats()
    assert stats.memories > 100
    assert stats.cold > 50  # encoded when they are recalled
    for _ in range(2):
        asked = [*messages, reply.message, user("What is the tracking number?")]
        answer = agent.chat(asked, max_new_tokens=24, remember=False)
        assert answer.text == "The tracking number is 8841."
        (read,) = [one for one in answer.memories if "8841" in one.memory.text]
        assert llm.flush(30)
    assert not read.rebuilt
    assert read.memory.tier is Tier.WARM
    kept = sorted(agent.memories.list(role="tool", limit=5000), key=lambda memory: memory.chunk_no)
    assert "".join(memory.text for memory in kept) == "\n".join(lines)


# ----------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("content", [b"\x89PNG", bytearray(b"x"), 7, [{"type": "image_url"}]])
def test_a_result_that_is_no_text_is_refused_and_the_loop_goes_on(llm: MemoryLLM, content: Any) -> None:
    agent = llm.conversation(user="agent", session="loop")
    messages = [TASK, *steps(1, 2)]
    agent.chat(messages)
    n = len(agent.memories)
    with pytest.raises(InvalidInput, match="message 4 "):
        agent.chat([*messages, call(2), result(2, content)])
    assert len(agent.memories) == n
    agent.chat([*messages, *steps(2, 3)])
    assert len(agent.memories) == n + 3


def test_empty_results_unknown_calls_and_orphans_are_part_of_the_dialogue(llm: MemoryLLM) -> None:
    agent = llm.conversation(user="agent", session="loop")
    messages = [TASK, call(1), result(1, ""), result(99, "tracking number: 8841"), call(2), call(3), result(3, None)]
    agent.chat(messages)
    texts = [memory.text for memory in agent.memories.list(sort="created_at", limit=20)]
    assert texts.count("(nothing)") == 2
    assert "tracking number: 8841" in texts
    agent.chat([*messages, *steps(4, 5)])
    assert len(agent.memories) == len(messages) + 2 + 2


def test_a_tool_that_talks_to_its_own_conversation_gets_an_answer_or_an_error(
    llm: MemoryLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversation, "UNREAD", 0.3)
    agent = llm.conversation(user="agent", session="loop")
    with agent.stream("Tell me about your day.", max_new_tokens=40) as stream, ThreadPoolExecutor(1) as tools:
        next(stream)
        with pytest.raises(InvalidInput, match="still open"):
            agent.chat("Hello!")  # in the loop itself
        with pytest.raises(InvalidInput, match="without being read"):
            tools.submit(agent.chat, "Hello!").result(30)  # in a thread that the loop waits for
        assert llm.conversation(user="agent", session="other").chat("Hello!").text is not None
    assert agent.chat("Hello!").text is not None


def test_a_tool_of_an_event_loop_talks_to_its_own_conversation(llm: MemoryLLM) -> None:
    agent = llm.conversation(user="agent", session="loop")

    async def run() -> list[str]:
        said = []
        async for _ in agent.astream("My dog is called Biscuit.", max_new_tokens=24):
            if not said:
                said.append((await agent.achat("What is my dog called?", max_new_tokens=24)).text)
        return said

    assert asyncio.run(asyncio.wait_for(run(), 60)) == ["Your dog is called Biscuit."]


def test_a_run_that_was_cancelled_is_taken_up_again(llm: MemoryLLM) -> None:
    agent = llm.conversation(user="agent", session="loop")
    messages = [TASK, *steps(1, 4)]

    async def cancelled(after: float) -> None:
        task = asyncio.create_task(agent.achat(messages, max_new_tokens=200, temperature=1.5, seed=1))
        await asyncio.sleep(after)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    for after in (0.0, 0.01, 0.2):
        asyncio.run(cancelled(after))
    agent.chat(messages)
    texts = [memory.text for memory in agent.memories.list(limit=1000) if memory.role != "assistant"]
    wanted = [message["content"] for message in messages if message["role"] != "assistant"]
    assert sorted(texts) == sorted(wanted)  # nothing lost, nothing doubled


# -------------------------------------------------------------------------------------------- two agents, one session


def once(llm: MemoryLLM, messages: list[dict[str, Any]]) -> None:
    memories = llm.conversation(user="agent", session="loop").memories
    texts = [memory.text for memory in memories.list(limit=1000) if memory.role != "assistant"]
    assert sorted(texts) == sorted(message["content"] for message in messages if message["role"] != "assistant")
    assert memories.verify().ok


def test_two_threads_with_one_list_store_it_once(llm: MemoryLLM) -> None:
    agents = [llm.conversation(user="agent", session="loop") for _ in range(2)]
    agents.append(agents[0])
    lists = [[TASK, *steps(1, n)] for n in (3, 5, 7)]
    with ThreadPoolExecutor(3) as pool:
        for messages in lists:
            list(pool.map(lambda agent, sent=messages: agent.chat(sent), agents))
    once(llm, lists[-1])


RUN = """
import json, sys
from agentmem import MemoryLLM
lists = json.loads(sys.argv[2])
with MemoryLLM(store=sys.argv[1], max_new_tokens=3) as llm:
    agent = llm.conversation(user="agent", session="loop")
    print("ready", flush=True)
    sys.stdin.readline()
    for messages in lists:
        agent.chat(messages)
"""


def test_two_processes_with_one_list_store_it_once(tmp_path: Path) -> None:
    lists = [[TASK, *steps(1, n)] for n in (3, 5, 7)]
    command = [sys.executable, "-c", RUN, str(tmp_path / "memory.db"), json.dumps(lists)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    running = [subprocess.Popen(command, **pipes) for _ in range(2)]
    for one in running:
        assert one.stdout is not None
        assert one.stdout.readline() == "ready\n"
    for one in running:
        one.communicate("go\n", timeout=120)
        assert one.returncode == 0
    with MemoryLLM(store=tmp_path / "memory.db") as llm:
        once(llm, lists[-1])
