"""MemoryLLM and Conversation on the bundled model: what a user sees, law by law."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentmem import Closed, InvalidInput, MemoryLLM, Message, NotFound, Role, StoreOpenError, Tier

SMALL_TALK = ["What a lovely day.", "I had three meetings today.", "The train was late again.", "I slept very well."]


@pytest.fixture
def llm(tmp_path: Path) -> Iterator[MemoryLLM]:
    with MemoryLLM(store=tmp_path / "memory.db") as llm:
        yield llm


def test_an_earlier_session_is_read_by_attention(llm: MemoryLLM) -> None:
    told = llm.conversation(user="ada")
    told.chat("My dog is called Biscuit.")
    for remark in SMALL_TALK:
        told.chat(remark)
    reply = llm.conversation(user="ada").chat("What is my dog called?")
    assert reply.text == "Your dog is called Biscuit."
    assert "Biscuit" in reply.memories[0].memory.text
    assert 0 < reply.memories[0].attention <= sum(read.attention for read in reply.memories) < 1
    assert reply.usage.memory_tokens > 0
    assert reply.finish_reason == "stop"


def test_what_the_context_holds_is_only_the_question(llm: MemoryLLM) -> None:
    llm.conversation(user="ada").chat("My dog is called Biscuit.")
    reply = llm.conversation(user="ada").chat("What is my dog called?")
    alone = llm.model.chat.render([Message(role=Role.USER, content="What is my dog called?")])
    assert reply.usage.prompt_tokens == len(alone)


def test_memory_survives_the_process(tmp_path: Path) -> None:
    script = (
        "import sys; from agentmem import MemoryLLM\n"
        "with MemoryLLM(store=sys.argv[1]) as llm:\n"
        "    reply = llm.conversation(user='ada').chat(sys.argv[2])\n"
        "    print(reply.text); print(all(r.memory.tier == 'warm' and not r.rebuilt for r in reply.memories))\n"
    )

    def say(text: str) -> list[str]:
        command = [sys.executable, "-c", script, str(tmp_path / "memory.db"), text]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()

    say("My flight number is KX204.")
    assert say("What is my flight number?") == ["Your flight number is KX204.", "True"]


def test_a_session_goes_on_after_a_restart_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    with MemoryLLM(store=path) as llm:
        llm.conversation(user="ada", session="monday").chat("My dog is called Biscuit.")
        llm.conversation(user="ada", session="tuesday").chat("My cat is called Luna.")
    with MemoryLLM(store=path) as llm:
        monday = llm.conversation(user="ada", session="monday")
        reply = monday.chat("What is my dog called?")
        assert reply.text == "Your dog is called Biscuit."
        assert not any("Biscuit" in read.memory.text for read in reply.memories)  # the window shows it
        assert monday.chat("What is my cat called?").text == "Your cat is called Luna."  # the other session is memory
        assert len(monday.memories) == 8


def test_nothing_told_nothing_answered(llm: MemoryLLM) -> None:
    llm.conversation(user="ada").chat("My dog is called Biscuit.")
    assert llm.conversation(user="ada").chat("What is my cat called?").text == "Your cat? You have not told me."


def test_the_latest_value_wins(llm: MemoryLLM) -> None:
    llm.conversation(user="ada").chat("My dog is called Biscuit.")
    llm.conversation(user="ada").chat("Actually, my dog is called Rex.")
    assert llm.conversation(user="ada").chat("What is my dog called?").text == "Your dog is called Rex."


def test_users_do_not_see_each_other(llm: MemoryLLM) -> None:
    llm.conversation(user="ada").chat("My dog is called Biscuit.")
    for other in ("ad", "adaa", "ADA", "ada ".strip() + "/x", "аda"):
        reply = llm.conversation(user=other).chat("What is my dog called?")
        assert "Biscuit" not in reply.text
        assert all("Biscuit" not in read.memory.text for read in reply.memories)
    assert llm.conversation(user="ada", agent="other").chat("What is my dog called?").memories == ()


def test_with_nothing_recalled_the_reply_is_the_plain_models(llm: MemoryLLM) -> None:
    prompt = llm.model.chat.render([Message(role=Role.USER, content="Hello!")])
    plain = llm.model.generate(prompt, max_new_tokens=20).text.strip()
    assert llm.conversation(user="new").chat("Hello!", max_new_tokens=20).text == plain


def test_what_was_recalled_is_never_written_again(llm: MemoryLLM) -> None:
    llm.conversation(user="ada").chat("My dog is called Biscuit.")
    before = {m.id for m in llm.conversation(user="ada").memories.list()}
    talk = llm.conversation(user="ada")
    reply = talk.chat("What is my dog called?")
    new = [m for m in talk.memories.list() if m.id not in before]
    assert sorted(m.text for m in new) == sorted(["What is my dog called?", reply.text])


def test_uses_and_attention_are_recorded(llm: MemoryLLM) -> None:
    ada = llm.conversation(user="ada")
    ada.chat("My dog is called Biscuit.")
    reply = llm.conversation(user="ada").chat("What is my dog called?")
    llm.conversation(user="ada").chat("Hello!")  # flushes the buffered uses with its write
    best = reply.memories[0]
    stored = ada.memories.get(best.memory.id)
    assert stored.uses >= 1
    assert stored.attention >= best.attention * 0.99
    assert stored.last_used is not None


def test_the_context_never_overflows(llm: MemoryLLM) -> None:
    ada = llm.conversation(user="ada")
    for i in range(30):
        reply = ada.chat(f"I want to find a hotel with {i} rooms and a very large garden in the old town, please.")
        assert reply.usage.prompt_tokens <= llm.window_tokens
        assert reply.usage.prompt_tokens + reply.usage.completion_tokens <= llm.model.max_positions
    assert len(ada.memories) == 60


def test_a_message_longer_than_the_window_is_answered_from_memory(llm: MemoryLLM) -> None:
    filler = "The garden looks beautiful this year. " * 100
    message = f"My dog is called Biscuit. {filler} What is my dog called?"
    reply = llm.conversation(user="ada").chat(message)
    assert reply.notes
    assert any("Biscuit" in read.memory.text for read in reply.memories)


def test_the_window_answers_what_was_just_said(llm: MemoryLLM) -> None:
    ada = llm.conversation(user="ada")
    ada.chat("My dog is called Biscuit.")
    reply = ada.chat("What is my dog called?")
    assert reply.text == "Your dog is called Biscuit."
    assert reply.memories == ()  # it stands in the context: it is not read twice


def test_a_resent_message_list_is_stored_once(llm: MemoryLLM) -> None:
    messages = [{"role": "user", "content": "My dog is called Biscuit."}]
    ada = llm.conversation(user="ada", session="s")
    for question in ("My cat is called Luna.", "What is my dog called?", "What is my cat called?"):
        reply = ada.chat(messages)
        messages += [{"role": "assistant", "content": reply.text}, {"role": "user", "content": question}]
    assert ada.chat(messages).text == "Your cat is called Luna."
    assert len(ada.memories) == len(messages) + 1
    again = llm.conversation(user="ada", session="s")  # as after a restart
    again.chat(messages)
    assert len(again.memories) == len(messages) + 1


def test_streaming_gives_the_reply_in_pieces(llm: MemoryLLM) -> None:
    llm.conversation(user="ada").chat("My dog is called Biscuit.")
    with llm.conversation(user="ada").stream("What is my dog called?") as stream:
        with pytest.raises(InvalidInput, match="not complete"):
            _ = stream.reply
        pieces = list(stream)
    assert len(pieces) > 2
    assert "".join(pieces) == stream.reply.text == "Your dog is called Biscuit."


def test_closing_a_stream_stops_it_and_remembers_what_was_said(llm: MemoryLLM) -> None:
    ada = llm.conversation(user="ada")
    stream = ada.stream("My dog is called Biscuit.")
    next(stream)
    with pytest.raises(InvalidInput, match="still open"):
        ada.chat("Hello!")
    stream.close()
    assert stream.reply.finish_reason in {"cancelled", "stop"}
    assert any(m.text == "My dog is called Biscuit." for m in ada.memories.list())
    assert ada.chat("What is my dog called?").text == "Your dog is called Biscuit."


def test_achat_answers_in_an_event_loop(llm: MemoryLLM) -> None:
    async def both() -> list[str]:
        users = [llm.conversation(user=name) for name in ("ada", "bob")]
        await asyncio.gather(users[0].achat("My dog is called Biscuit."), users[1].achat("My dog is called Rex."))
        fresh = [llm.conversation(user=name) for name in ("ada", "bob")]
        return [reply.text for reply in await asyncio.gather(*(c.achat("What is my dog called?") for c in fresh))]

    assert asyncio.run(both()) == ["Your dog is called Biscuit.", "Your dog is called Rex."]


def test_threads_share_a_model_without_mixing_memories(llm: MemoryLLM) -> None:
    names = {"u1": "Biscuit", "u2": "Rex", "u3": "Luna", "u4": "Milo"}
    answers: dict[str, str] = {}

    def user(name: str) -> None:
        llm.conversation(user=name).chat(f"My dog is called {names[name]}.")
        answers[name] = llm.conversation(user=name).chat("What is my dog called?").text

    threads = [threading.Thread(target=user, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {name: f"Your dog is called {dog}." for name, dog in names.items()}


def test_memories_can_be_added_changed_pinned_and_forgotten(llm: MemoryLLM) -> None:
    ada = llm.conversation(user="ada")
    (memory,) = ada.memories.add("My boat is called Quendra.", tags=["boats"])
    assert llm.conversation(user="ada").chat("What is my boat called?").text == "Your boat is called Quendra."
    ada.memories.update(memory.id, text="My boat is called Mirello.")
    assert llm.flush(30)
    assert ada.memories.get(memory.id).tier is Tier.WARM
    ada.memories.pin(memory.id)
    assert ada.memories.get(memory.id).pinned
    hits = ada.memories.search("boat", top_k=3, explain=True)
    assert memory.id in [hit.memory.id for hit in hits]
    assert all(hit.explain is not None for hit in hits)
    ada.memories.delete(memory.id)
    with pytest.raises(NotFound):
        ada.memories.get(memory.id)
    assert [event.action for event in ada.memories.history(memory.id)][-1] == "deleted"


def test_an_id_of_another_scope_is_answered_like_an_unknown_one(llm: MemoryLLM) -> None:
    (memory,) = llm.conversation(user="ada").memories.add("My boat is called Quendra.")
    bob = llm.conversation(user="bob").memories
    for call in (bob.get, bob.delete, bob.pin, lambda id: bob.update(id, text="mine")):
        with pytest.raises(NotFound) as theirs:
            call(memory.id)
        with pytest.raises(NotFound) as unknown:
            call("0" * len(memory.id))
        assert str(theirs.value).replace(memory.id, "") == str(unknown.value).replace("0" * len(memory.id), "")


def test_export_and_load(llm: MemoryLLM, tmp_path: Path) -> None:
    llm.conversation(user="ada").memories.add("My boat is called Quendra.")
    llm.conversation(user="ada").memories.export(tmp_path / "ada.jsonl")
    bob = llm.conversation(user="bob").memories
    bob.load(tmp_path / "ada.jsonl")
    assert [m.text for m in bob.list()] == ["My boat is called Quendra."]
    assert llm.conversation(user="bob").chat("What is my boat called?").text == "Your boat is called Quendra."


@pytest.mark.parametrize(
    "bad", ["", "   ", "a\x00b", "lone \ud83d", None, 7, [], [{"role": "pirate", "content": "x"}], [{}]]
)
def test_bad_messages_are_refused_and_leave_nothing(llm: MemoryLLM, bad: object) -> None:
    ada = llm.conversation(user="ada")
    with pytest.raises(InvalidInput):
        ada.chat(bad)  # type: ignore[arg-type]
    assert len(ada.memories) == 0


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 0},
        {"max_new_tokens": 10_000},
        {"max_new_tokens": "ten"},
        {"temperature": -1.0},
        {"temperature": "hot"},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_k_tokens": -1},
        {"seed": "lucky"},
        {"stop": ""},
        {"stop": [3]},
    ],
)
def test_bad_options_are_refused(llm: MemoryLLM, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        llm.conversation(user="ada").chat("Hello!", **options)


@pytest.mark.parametrize("user", ["", " ada", "a\nb", "a\u200bb", "x" * 300])
def test_bad_scopes_are_refused(llm: MemoryLLM, user: str) -> None:
    with pytest.raises(InvalidInput):
        llm.conversation(user=user)


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": -1},
        {"top_k": "many"},
        {"max_new_tokens": 0},
        {"window_tokens": 3},
        {"window_tokens": 100_000},
        {"hot_bytes": -1},
        {"codec": "zip"},
        {"dtype": "float99"},
        {"device": "abacus"},
        {"recipe": "soup"},
    ],
)
def test_an_llm_that_cannot_be_made_says_why_and_makes_no_store(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        MemoryLLM(store=tmp_path / "memory.db", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_closed_llm_says_so(tmp_path: Path) -> None:
    llm = MemoryLLM(store=tmp_path / "memory.db")
    ada = llm.conversation(user="ada")
    llm.close()
    with pytest.raises(Closed):
        ada.memories.list()


def test_a_directory_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreOpenError):
        MemoryLLM(store=tmp_path)


def test_a_megabyte_is_chunked_stored_and_answered(llm: MemoryLLM) -> None:
    ada = llm.conversation(user="ada")
    text = "The garden looks beautiful this year. " * 27_000
    memories = ada.memories.add(text)
    assert "".join(m.text for m in memories) == text
    llm.writer.close(0)  # do not wait for thousands of KV: they are cold and encoded when recalled
