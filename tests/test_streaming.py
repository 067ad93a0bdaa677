"""Conversations that are one stream: real store, real (tiny) model; the stream is a cache of the text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from agentmem import InvalidInput, MemoryLLM
from agentmem.recipes import InfLLM, StreamingLLM
from agentmem.streaming import StreamConversation
from tests.model import tiny_models

RECIPE = InfLLM(n_init=8, n_local=64, block_size=16, top_k=2, n_repr=2, step=32)
SAID = [f"Sentence number {i} says that the boat is {word}." for i, word in enumerate(["red", "old", "big", "far"])]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    tiny_models.build("llama").save_pretrained(folder)
    tiny_models.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def db(tmp_path: Path) -> Path:
    return tmp_path / "memory.db"


def opened(tiny: Path, db: Path, recipe: InfLLM | StreamingLLM = RECIPE) -> MemoryLLM:
    return MemoryLLM(tiny, store=db, recipe=recipe)


def talk(llm: MemoryLLM, session: str = "s", user: str = "ada") -> StreamConversation:
    conversation = llm.conversation(user=user, session=session)
    assert isinstance(conversation, StreamConversation)
    return conversation


def next_logits(conversation: StreamConversation) -> torch.Tensor:
    """What the stream says next; it must not be used afterwards."""
    assert conversation._stream is not None
    return conversation._stream.feed([9])


@pytest.fixture
def llm(tiny: Path, db: Path) -> Iterator[MemoryLLM]:
    with opened(tiny, db) as llm:
        yield llm


def test_a_session_goes_on_in_another_process_as_if_it_had_never_stopped(tiny: Path, tmp_path: Path) -> None:
    with opened(tiny, tmp_path / "one.db") as llm:
        unbroken = talk(llm)
        replies = [unbroken.chat(text, max_new_tokens=12).text for text in SAID]
        wanted = next_logits(unbroken)
    broken = []
    for text in SAID:
        with opened(tiny, tmp_path / "two.db") as llm:
            ada = talk(llm)
            reply = ada.chat(text, max_new_tokens=12)
            broken.append(reply.text)
            assert reply.notes == ()
            got = ada
            if text == SAID[-1]:
                assert torch.equal(next_logits(got), wanted)
    assert broken == replies


def test_forgetting_leaves_the_stream_of_one_who_was_never_told(llm: MemoryLLM) -> None:
    told, never = talk(llm, "told"), talk(llm, "never")
    for text in SAID:
        told.chat(text, max_new_tokens=1, stop="x")
    (secret,) = [m for m in told.memories.list(limit=100, role="user") if "old" in m.text]
    replies = {m.text for m in told.memories.list(limit=100, role="assistant")}
    told.memories.delete(secret.id)
    left = [m for m in told.memories.list(sort="created_at", limit=100)]
    reply = told.chat("Well?", max_new_tokens=1)
    assert any("forgotten" in note for note in reply.notes)
    messages = [{"role": m.role.value, "content": m.text} for m in left]
    never.chat([*messages, {"role": "user", "content": "Well?"}], max_new_tokens=1)
    assert replies
    assert told.stream_tokens == never.stream_tokens
    assert torch.equal(next_logits(told), next_logits(never))


def test_another_window_or_damage_is_encoded_again_and_said_so(tiny: Path, db: Path) -> None:
    with opened(tiny, db) as llm:
        ada = talk(llm)
        for text in SAID:
            ada.chat(text, max_new_tokens=4)
    with opened(tiny, db, InfLLM(n_init=8, n_local=32, block_size=16, top_k=2, n_repr=2, step=32)) as llm:
        reply = talk(llm).chat("And now?", max_new_tokens=4)
        assert any("another model or recipe" in note for note in reply.notes)
    (records,) = (db.parent / f"{db.name}.kv" / "streams").glob("*/records")
    data = bytearray(records.read_bytes())
    data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
    data[: len(data) // 2] = bytes(len(data) // 2)
    records.write_bytes(data)
    with opened(tiny, db, InfLLM(n_init=8, n_local=32, block_size=16, top_k=2, n_repr=2, step=32)) as llm:
        reply = talk(llm).chat("And then?", max_new_tokens=4)
        assert any("damaged" in note for note in reply.notes)
        assert talk(llm).chat("And last?", max_new_tokens=4).notes == ()


def test_a_message_list_continues_or_begins_anew(llm: MemoryLLM) -> None:
    ada = talk(llm)
    first = [{"role": "user", "content": SAID[0]}]
    reply = ada.chat(first, max_new_tokens=6)
    tokens = ada.stream_tokens
    longer = [*first, {"role": "assistant", "content": reply.text}, {"role": "user", "content": SAID[1]}]
    again = ada.chat(longer, max_new_tokens=6)
    assert again.usage.prompt_tokens < len(SAID[1]) + 60  # only what was new
    assert ada.stream_tokens > tokens
    other = ada.chat([{"role": "user", "content": SAID[2]}], max_new_tokens=6)
    assert ada.stream_tokens < tokens + 40
    assert other.usage.completion_tokens == 6


def test_a_reply_that_was_cut_is_whole_in_the_stream(llm: MemoryLLM) -> None:
    ada = talk(llm)
    ada.chat(SAID[0], max_new_tokens=5)
    before = ada.stream_tokens
    prompt = llm.model.chat.render_next([tiny_message("Go on.")])
    ada.chat("Go on.", max_new_tokens=1)
    assert ada.stream_tokens == before + 1 + len(prompt)  # the token that was generated last, then the new turn


def tiny_message(text: str):  # type: ignore[no-untyped-def]  # a Message
    from agentmem import Message, Role

    return Message(role=Role.USER, content=text)


def test_a_reply_says_which_memories_it_read(llm: MemoryLLM) -> None:
    ada = talk(llm)
    for text in SAID:
        ada.chat(text, max_new_tokens=8)
    reply = ada.chat("What?", max_new_tokens=8)
    assert reply.memories
    assert reply.usage.memory_tokens > 0
    assert 0 < sum(read.attention for read in reply.memories) < 1
    uses = {m.id: m.uses for m in ada.memories.list(limit=100)}
    assert all(uses[read.memory.id] >= 1 for read in reply.memories)


def test_streams_of_other_sessions_and_users_are_not_read(llm: MemoryLLM) -> None:
    alone = talk(llm, "alone", "bob")
    for text in SAID[:2]:
        talk(llm, "s1").chat(text, max_new_tokens=4)
    first = alone.chat(SAID[3], max_new_tokens=6).text
    assert talk(llm, "s2", "eve").chat(SAID[3], max_new_tokens=6).text == first


def test_a_stream_that_is_closed_early_remembers_what_was_said(llm: MemoryLLM) -> None:
    ada = talk(llm)
    with ada.stream(SAID[0], max_new_tokens=400) as pieces:
        for _ in range(3):
            next(pieces)
    said = [m.text for m in ada.memories.list(sort="created_at", role="assistant")]
    assert said
    assert ada.chat("More?", max_new_tokens=4).notes == ()


def test_stream_recipes_write_no_kv_of_single_memories(llm: MemoryLLM) -> None:
    ada = talk(llm)
    (memory,) = ada.memories.add("The boat is blue.")
    llm.flush()
    assert ada.memories.get(memory.id).kv_bytes == 0
    with pytest.raises(InvalidInput, match="stream"):
        _ = llm.writer.recipe


def test_windows_without_memory_work_as_conversations_too(tiny: Path, db: Path) -> None:
    with opened(tiny, db, StreamingLLM(n_local=64, step=32)) as llm:
        ada = talk(llm)
        for text in SAID:
            assert ada.chat(text, max_new_tokens=4).usage.memory_tokens == 0
    with opened(tiny, db, StreamingLLM(n_local=64, step=32)) as llm:
        assert talk(llm).chat("And?", max_new_tokens=4).notes == ()
