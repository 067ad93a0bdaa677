"""What a server needs of a conversation: resent lists, going on behind a turn, tools, and stopping from elsewhere."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import agentmem.tools
from agentmem import InvalidInput, MemoryLLM, Message, NotFound, Role, ToolCall
from agentmem.llm import bundled_model
from agentmem.tools import call_text, check_tools, offer, read_calls, words_only
from agentmem.turns import branch, with_ids

ADD = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}}
CALL = ToolCall(name="add", arguments={"a": 4, "b": "fünf"})


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


# --------------------------------------------------------------------------------------------------------------- tools


@pytest.mark.parametrize(
    "bad",
    [
        "add",
        [1],
        [{"type": "web_search"}],
        [{"type": "function", "function": {"name": "no space"}}],
        [{"type": "function", "function": {"name": "add", "parameters": []}}],
        [ADD, ADD],
    ],
)
def test_tools_of_another_form_are_refused(bad: Any) -> None:
    with pytest.raises(InvalidInput):
        check_tools(bad)


def test_the_offer_stands_behind_the_system_text_and_is_json() -> None:
    text = offer([ADD], "Be brief.")
    assert text.startswith("Be brief.\n\n# Tools")
    assert json.loads(text.partition("<tools>\n")[2].partition("\n</tools>")[0]) == ADD
    with pytest.raises(InvalidInput, match="plain JSON"):
        offer([{"parameters": {1, 2}}])


def test_calls_survive_being_written_and_read() -> None:
    assert read_calls(call_text("Let me see.", [CALL, CALL]), ["add"]) == ("Let me see.", (CALL, CALL))
    assert read_calls(call_text("", [CALL]), ["add"]) == ("", (CALL,))


@pytest.mark.parametrize(
    "text",
    [
        "no call",
        "<tool_call>{broken</tool_call>",
        '<tool_call>{"name": "other", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "add", "arguments": 3}</tool_call>',
        "<tool_call>[]</tool_call>",
        call_text("", [CALL]) + "\n<tool_call>{",
    ],
)
def test_what_is_no_call_stays_text(text: str) -> None:
    assert read_calls(text, ["add"]) == (text, ())


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_a_call_is_not_shown_while_it_is_generated(size: int) -> None:
    def cut(text: str) -> list[str]:
        return [text[at : at + size] for at in range(0, len(text), size)]

    assert "".join(words_only(cut("A < b. \n" + call_text("", [CALL])))) == "A < b."
    assert "".join(words_only(cut("A < b. <tool_ca"))) == "A < b. <tool_ca"


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that answers everything with one call of ``add``: a token of its own, and then the end of the turn."""
    folder = tmp_path_factory.mktemp("caller")
    tokenizer = AutoTokenizer.from_pretrained(bundled_model())
    tokenizer.add_tokens([call_text("", [CALL])])
    model = AutoModelForCausalLM.from_pretrained(bundled_model(), tie_word_embeddings=False)
    model.resize_token_embeddings(len(tokenizer))
    call, end = len(tokenizer) - 1, tokenizer.convert_tokens_to_ids("<|end|>")
    embed, head = model.model.embed_tokens.weight.data, model.lm_head.weight.data
    embed[:, :2], head[:] = 0.0, 0.0
    embed[:, 0], embed[call, :2] = 50.0, embed.new_tensor([0.0, 50.0])
    for layer in model.model.layers:  # every layer adds nothing: the last token alone says what comes
        layer.self_attn.o_proj.weight.data.zero_()
        layer.mlp.down_proj.weight.data.zero_()
    head[call, 0], head[end, 1] = 1.0, 1.0
    model.model.norm.weight.data.fill_(1.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_tool_is_called_and_its_result_answered(caller: Path, tmp_path: Path) -> None:
    with MemoryLLM(caller, store=tmp_path / "memory.db", top_k=0) as llm:
        ada = llm.conversation(user="ada", session="s")
        stream = ada.stream([user("What is 4 and 5?")], tools=[ADD])
        assert list(stream) == []
        reply = stream.reply
        assert (reply.text, reply.tool_calls, reply.finish_reason) == ("", (CALL,), "tool_calls")
        result = {"role": "tool", "content": "9", "tool_call_id": "call_1"}
        again = llm.conversation(user="ada", session="s")
        again.chat([user("What is 4 and 5?"), assistant(call_text("", [CALL])), result], tools=[ADD])
        texts = [memory.text for memory in again.memories.list(sort="created_at")]
        assert texts == ["What is 4 and 5?", call_text("", [CALL]), "9", call_text("", [CALL])]
        # The same words where no such tool is offered are words.
        reply = llm.conversation(user="bob").chat("What is 4 and 5?")
        assert (reply.text, reply.finish_reason) == (call_text("", [CALL]), "stop")


def test_an_answer_that_only_looks_like_a_call_is_shown_whole(caller: Path, tmp_path: Path) -> None:
    other = {"type": "function", "function": {"name": "other"}}
    with MemoryLLM(caller, store=tmp_path / "memory.db", top_k=0) as llm:
        stream = llm.conversation(user="ada").stream("What is 4 and 5?", tools=[other])
        assert "".join(stream) == stream.reply.text == call_text("", [CALL])
        assert agentmem.tools.OPEN in stream.reply.text
