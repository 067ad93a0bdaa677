"""What a server needs of a conversation: resent lists, going on behind a turn, and stopping from elsewhere."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from agentmem import MemoryLLM, Message, NotFound, Role
from agentmem.turns import branch, with_ids


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MemoryLLM]:
    with MemoryLLM(store=tmp_path_factory.mktemp("turns") / "memory.db", max_new_tokens=24) as llm:
        yield llm


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


# --------------------------------------------------------------------------------------------------------- resent lists


def test_a_resent_list_is_not_embedded_again(llm: MemoryLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    said = [user("My dog is called Biscuit.")]
    reply = llm.conversation(user="resend", session="s").chat(said)
    said += [assistant(reply.text), user("What is my dog called?")]
    embedded: list[str] = []
    embed = llm.writer.embedder.embed
    monkeypatch.setattr(llm.writer.embedder, "embed", lambda texts: embedded.extend(texts) or embed(texts))
    again = llm.conversation(user="resend", session="s")
    reply = again.chat(said)
    assert reply.text == "Your dog is called Biscuit."
    assert not reply.memories  # the window shows it
    assert not any(text.startswith("My dog") for text in embedded)
    assert len(again.memories) == 4


def test_what_was_forgotten_does_not_come_back_with_a_resent_list(llm: MemoryLLM) -> None:
    said = [user("My dog is called Biscuit.")]
    told = llm.conversation(user="forget", session="s")
    said += [assistant(told.chat(said).text), user("Hello!")]
    told.memories.delete([memory.id for memory in told.memories.list()])
    again = llm.conversation(user="forget", session="s")
    again.chat(said)
    assert not [memory for memory in again.memories.list() if "Biscuit" in memory.text]
    assert len(again.memories) == 2


def test_what_was_changed_stays_changed(llm: MemoryLLM) -> None:
    said = [user("My dog is called Biscuit.")]
    told = llm.conversation(user="change", session="s")
    said += [assistant(told.chat(said).text), user("Hello!")]
    told.memories.update(next(m.id for m in told.memories.list() if m.role is Role.USER), text="My dog is called Rex.")
    again = llm.conversation(user="change", session="s")
    again.chat(said)
    assert [m.text for m in again.memories.list(role="user", sort="created_at")] == ["My dog is called Rex.", "Hello!"]


# ---------------------------------------------------------------------------------------------------- behind a turn


def test_a_dialogue_goes_on_behind_any_of_its_turns(llm: MemoryLLM) -> None:
    first = llm.conversation(user="branch", session="s").chat([user("My dog is called Biscuit.")])
    cat = llm.conversation(user="branch", session="s").chat("My cat is called Luna.", after=first.turn)
    other = llm.conversation(user="branch", session="s").chat([user("My horse is called Max.")], after=first.turn)
    assert len({first.turn, cat.turn, other.turn}) == 3
    conversation = llm.conversation(user="branch", session="s")
    reply = conversation.chat("What is my dog called?", after=other.turn)
    assert reply.text == "Your dog is called Biscuit."
    window = [message.content for message, _ in conversation._past]
    assert "My horse is called Max." in window
    assert "My cat is called Luna." not in window


def test_a_turn_that_was_never_said_is_not_found(llm: MemoryLLM) -> None:
    llm.conversation(user="branch2", session="s").chat("Hello!")
    with pytest.raises(NotFound, match="no turn"):
        llm.conversation(user="branch2", session="s").chat("Hello!", after="0" * 32)


def test_branches_are_told_apart_by_their_chained_ids() -> None:
    def message(text: str) -> Message:
        return Message(role=Role.USER, content=text)

    trunk = with_ids([message("a"), message("b")], "seed")
    left = with_ids([message("c")], trunk[-1][1])
    right = with_ids([message("d"), message("e")], trunk[-1][1])
    turns = [*trunk, *left, *right]
    assert [m.content for m, _ in branch(turns, right[-1][1])] == ["a", "b", "d", "e"]
    assert [m.content for m, _ in branch(turns, left[-1][1])] == ["a", "b", "c"]
    assert [m.content for m, _ in branch(turns, trunk[0][1])] == ["a"]


def test_nothing_is_stored_where_nothing_is_to_be_remembered(llm: MemoryLLM) -> None:
    ada = llm.conversation(user="quiet")
    ada.chat("My dog is called Biscuit.")
    stored = [(memory.id, memory.uses) for memory in ada.memories.list()]
    fresh = llm.conversation(user="quiet")
    reply = fresh.chat("What is my dog called?", remember=False)
    assert reply.text == "Your dog is called Biscuit."
    assert [(memory.id, memory.uses) for memory in fresh.memories.list()] == stored


@pytest.mark.parametrize("options", [{"temperature": 5e-324}, {"temperature": 1.9, "top_p": 5e-324}])
def test_the_least_temperature_and_top_p_take_the_likeliest_token(llm: MemoryLLM, options: dict[str, float]) -> None:
    plain = llm.conversation(user="cold").chat("My dog is called Biscuit.", remember=False)
    assert llm.conversation(user="cold").chat("My dog is called Biscuit.", remember=False, **options).text == plain.text


# ----------------------------------------------------------------------------------------------------------- stopping


def test_another_thread_stops_a_reply(llm: MemoryLLM) -> None:
    conversation = llm.conversation(user="stop")
    stream = conversation.stream("Tell me about your day.", max_new_tokens=500, temperature=1.5, seed=3)
    threading.Timer(0.0, stream.cancel).start()
    pieces = list(stream)  # ends by itself
    assert stream.reply.finish_reason in {"cancelled", "stop"}
    assert "".join(pieces).strip() == stream.reply.text
    assert any(memory.text == "Tell me about your day." for memory in conversation.memories.list())
