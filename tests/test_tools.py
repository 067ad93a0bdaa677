"""Tools in a conversation: what is taken, what comes back, what is remembered, and what goes wrong politely."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from agentmem import InvalidInput, MemoryLLM, Message, Role, ToolCall
from agentmem.dialogue import check_dialogue
from agentmem.llm import bundled_model
from agentmem.model.calls import PLAIN
from agentmem.model.grammar import closed
from agentmem.tools import check_choice, check_format, check_tools, stored_message

ADD = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}}
CALL = ToolCall(name="add", arguments={"a": 4, "b": "fünf"})
WRITTEN = PLAIN.write([CALL])


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MemoryLLM]:
    with MemoryLLM(store=tmp_path_factory.mktemp("tools") / "memory.db", max_new_tokens=24) as llm:
        yield llm


# ------------------------------------------------------------------------------------------------------ what is taken


def test_a_message_is_what_openai_says_it_is() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "input_text", "text": "b"}]
    assert Message.model_validate({"role": "user", "content": parts, "name": None}).content == "a\nb"
    assert Message.model_validate({"role": "developer", "content": "x"}).role is Role.SYSTEM
    nested = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 4}'}}
    given = {"role": "assistant", "content": None, "tool_calls": [nested], "refusal": None, "annotations": []}
    message = Message.model_validate(given)
    assert message.tool_calls == (ToolCall(id="c1", name="add", arguments={"a": 4}),)
    assert message.openai() == {"role": "assistant", "content": None, "tool_calls": [nested]}
    assert Message.model_validate(message.openai()) == message
    nested["function"] = {"name": "add", "arguments": {"a": 4}}
    assert Message.model_validate({"role": "assistant", "tool_calls": [nested]}) == message
    result = Message(role=Role.TOOL, content="9", tool_call_id="c1")
    assert result.openai() == {"role": "tool", "content": "9", "tool_call_id": "c1"}


def test_a_call_without_an_id_gets_one() -> None:
    first, second = ToolCall(name="add"), ToolCall.model_validate({"id": None, "function": {"name": "add"}})
    assert first.id.startswith("call_")
    assert len({first.id, second.id}) == 2
    assert first.arguments == second.arguments == {}


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ({"role": "tool", "content": b"\xff\x00"}, "bytes"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "text only"),
        ({"role": "user", "content": 3}, "content"),
        ({"role": "user", "content": "x", "tool_calls": [{"name": "add"}]}, "only an assistant"),
        ({"role": "robot", "content": "x"}, "role"),
        ({"role": "user", "content": "x", "colour": "red"}, "colour"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "add", "arguments": "{broken"}}]}, "JSON object"),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "add", "arguments": "[" * 100_000}}]},
            "JSON object",
        ),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "add", "arguments": "[1]"}}]}, "dictionary"),
        ({"role": "assistant", "tool_calls": [{"name": "add", "arguments": {"a": {1, 2}}}]}, "plain JSON"),
        ({"role": "assistant", "tool_calls": [{"name": "add", "arguments": {"a": "\ud800"}}]}, "plain JSON"),
        ({"role": "assistant", "tool_calls": [{"name": "no space", "arguments": {}}]}, "name"),
        ({"role": "assistant", "tool_calls": [{"type": "custom", "name": "add"}]}, "function"),
        ({"role": "assistant", "tool_calls": "add"}, "tool_calls"),
        ("words", "model_type|dictionary|instance"),
    ],
)
def test_what_is_no_message_is_refused_by_its_number(bad: Any, why: str) -> None:
    with pytest.raises(InvalidInput, match=f"(?s)message 1 .*({why})"):
        check_dialogue([user("Hi"), bad])


def test_a_dialogue_as_clients_send_it() -> None:
    dialogue = check_dialogue(
        [
            {"role": "system", "content": "Be kind."},
            user("Hi"),
            {"role": "assistant", "content": ""},
            {"role": "tool", "content": "", "tool_call_id": "c1"},
            {"role": "developer", "content": "Be brief."},
        ]
    )
    assert dialogue.system is not None
    assert dialogue.system.content == "Be kind.\n\nBe brief."
    assert [(m.role.value, m.content) for m in dialogue.said] == [("user", "Hi"), ("tool", "(nothing)")]
    for nobody in ([{"role": "system", "content": "x"}], [{"role": "assistant"}], [], b"bytes"):
        with pytest.raises(InvalidInput):
            check_dialogue(nobody)


@pytest.mark.parametrize(
    "bad",
    [
        "add",
        b"add",
        [1],
        [{"type": "web_search"}],
        [{"type": "function", "function": {"name": "no space"}}],
        [{"type": "function", "function": {"name": "add", "parameters": []}}],
        [{"type": "function", "function": {"name": "add", "parameters": {"type": "array"}}}],
        [{"type": "function", "function": {"name": "add", "parameters": {"properties": []}}}],
        [{"type": "function", "function": {"name": "add", "parameters": {"properties": {"a": {1}}}}}],
        [{"type": "function", "function": {"name": "add", "description": 3}}],
        [{"type": "function", "function": {"name": "add", "description": "\ud800"}}],
        [ADD, ADD],
    ],
)
def test_tools_of_another_form_are_refused(bad: Any) -> None:
    with pytest.raises(InvalidInput):
        check_tools(bad)


def test_tools_are_the_same_in_any_order() -> None:
    other = {"function": {"parameters": None, "name": "aaa", "strict": True}, "type": "function"}
    tools = check_tools([ADD, other])
    assert [one["function"]["name"] for one in tools] == ["aaa", "add"]
    assert tools[0]["function"] == {
        "name": "aaa",
        "description": "",
        "parameters": {"type": "object", "properties": {}},
    }
    assert json.dumps(tools) == json.dumps(check_tools([other, ADD]))


def test_a_choice_is_openais() -> None:
    tools = check_tools([ADD])
    named = {"type": "function", "function": {"name": "add"}}
    assert check_choice("auto", tools) is check_choice("none", ()) is None
    assert check_choice("required", tools) == check_choice(named, tools) == tools
    for bad in ("add", "always", None, {"type": "function"}, {"type": "function", "function": {"name": "other"}}):
        with pytest.raises(InvalidInput, match="tool_choice"):
            check_choice(bad, tools)
    with pytest.raises(InvalidInput, match="no tools"):
        check_choice("required", ())


def test_a_response_format_is_openais() -> None:
    schema = {"type": "object"}
    assert check_format(None) is check_format({"type": "text"}) is None
    assert check_format({"type": "json_object"}) == schema
    assert check_format({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}) == schema
    for bad in (
        "json",
        {"type": "xml"},
        {"type": "json_schema"},
        {"type": "json_schema", "json_schema": {"schema": 3}},
    ):
        with pytest.raises(InvalidInput, match="response_format"):
            check_format(bad)


# -------------------------------------------------------------------------------------------------- what is remembered


def test_a_call_is_stored_in_words_and_read_back() -> None:
    message = Message(role=Role.ASSISTANT, content="Let me see.", tool_calls=(CALL, ToolCall(name="add")))
    assert message.text == 'Let me see.\nCalling add with {"a": 4, "b": "fünf"}\nCalling add with {}'
    again = stored_message(Role.ASSISTANT, message.text)
    assert again.content == "Let me see."
    assert [(c.name, c.arguments) for c in again.tool_calls] == [("add", CALL.arguments), ("add", {})]
    for words in ("Calling you with {care}", "Calling add with {}\nDone.", 'Calling add with {"a":1}'):
        assert stored_message(Role.ASSISTANT, words) == Message(role=Role.ASSISTANT, content=words)
    assert not stored_message(Role.USER, message.text).tool_calls


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.text(st.characters(exclude_categories=["Cs"])), st.dictionaries(st.text(), _JSON, max_size=3))
def test_every_call_survives_being_stored(words: str, arguments: dict[str, Any]) -> None:
    try:
        call = ToolCall(name="f", arguments=arguments)
    except ValueError:
        return  # a lone surrogate
    text = Message(role=Role.ASSISTANT, content=words, tool_calls=(call,)).text
    again = stored_message(Role.ASSISTANT, text)
    assert again.text == text
    assert again.tool_calls[-1].arguments == arguments


# -------------------------------------------------------------------------------------------------- what comes back


def saying(folder: Path, text: str) -> Path:
    """A model that answers everything with this text: a token of its own, and then the end of the turn."""
    tokenizer = AutoTokenizer.from_pretrained(bundled_model())
    tokenizer.add_tokens([text])
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


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saying(tmp_path_factory.mktemp("caller"), WRITTEN)


def test_a_tool_is_called_and_its_result_answered(caller: Path, tmp_path: Path) -> None:
    with MemoryLLM(caller, store=tmp_path / "memory.db", top_k=0) as llm:
        ada = llm.conversation(user="ada", session="s")
        stream = ada.stream([user("What is 4 and 5?")], tools=[ADD])
        assert list(stream) == []
        reply = stream.reply
        (call,) = reply.tool_calls
        assert (reply.text, call.name, call.arguments) == ("", "add", CALL.arguments)
        assert reply.finish_reason == "tool_calls"
        result = {"role": "tool", "content": "9", "tool_call_id": call.id}
        again = llm.conversation(user="ada", session="s")
        again.chat([user("What is 4 and 5?"), reply.message, result], tools=[ADD])
        texts = [memory.text for memory in again.memories.list(sort="created_at")]
        assert texts == ["What is 4 and 5?", CALL.text, "9", CALL.text]
        # A session that is opened again has the call in its window as the model writes it.
        reopened = llm.conversation(user="ada", session="s")
        assert reopened._up_to(None)[1][0].tool_calls[0].arguments == CALL.arguments
        # The same words where no such tool is offered are words.
        for options in ({}, {"tools": [ADD], "tool_choice": "none"}):
            reply = llm.conversation(user="bob").chat("What is 4 and 5?", **options)
            assert (reply.text, reply.finish_reason) == (WRITTEN, "stop")


def test_a_call_of_an_unknown_tool_is_shown_whole(caller: Path, tmp_path: Path) -> None:
    other = {"type": "function", "function": {"name": "other"}}
    with MemoryLLM(caller, store=tmp_path / "memory.db", top_k=0) as llm:
        stream = llm.conversation(user="ada").stream("What is 4 and 5?", tools=[other])
        assert "".join(stream) == stream.reply.text == WRITTEN
        assert stream.reply.finish_reason == "broken_call"
        assert "'add'" in stream.reply.notes[0]


@pytest.mark.parametrize("said", ['So: <tool_call>{"name": "add", "argu', "<tool_call>\n" + "[" * 50_000])
def test_a_broken_call_is_a_normal_outcome(said: str, tmp_path: Path) -> None:
    with MemoryLLM(saying(tmp_path, said), store=tmp_path / "memory.db", top_k=0) as llm:
        stream = llm.conversation(user="ada").stream("What is 4 and 5?", tools=[ADD])
        assert "".join(stream) == stream.reply.text == said
        assert (stream.reply.tool_calls, stream.reply.finish_reason) == ((), "broken_call")


@pytest.mark.parametrize(
    "bad",
    [{"tools": "add"}, {"tool_choice": "required"}, {"tool_choice": "add", "tools": [ADD]}, {"response_format": 3}],
)
def test_bad_options_are_refused_and_leave_nothing(llm: MemoryLLM, bad: dict[str, Any]) -> None:
    ada = llm.conversation(user="refused")
    with pytest.raises(InvalidInput):
        ada.stream("Hello!", **bad)
    assert len(ada.memories) == 0


# ------------------------------------------------------------------------------------------- the bundled model, whole


PERSON = {
    "type": "object",
    "properties": {"name": {"enum": ["Ada", "Bob"]}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
SAVE = {"type": "function", "function": {"name": "save", "description": "Saves a person.", "parameters": PERSON}}


def is_person(value: Any) -> bool:
    return set(value) == {"name", "age"} and value["name"] in {"Ada", "Bob"} and 0 <= value["age"] <= 99


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "save"}}])
def test_a_call_can_be_required(llm: MemoryLLM, choice: Any) -> None:
    ada = llm.conversation(user="required")
    reply = ada.chat("Save me!", tools=[SAVE], tool_choice=choice, max_new_tokens=120, temperature=1.0, seed=3)
    (call,) = reply.tool_calls
    assert (reply.text, reply.finish_reason, call.name) == ("", "tool_calls", "save")
    assert is_person(call.arguments)
    after = ada.chat([*_asked("Save me!"), reply.message, _result(call, "Saved.")], tools=[SAVE])
    assert after.finish_reason in {"stop", "length", "broken_call"}


def test_an_answer_can_follow_a_schema(llm: MemoryLLM) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
    reply = llm.conversation(user="json").chat("Who?", response_format=wanted, max_new_tokens=120)
    assert is_person(json.loads(reply.text))
    # With tools to choose from, it is either.
    for seed in range(4):
        options = {"temperature": 1.5, "seed": seed, "max_new_tokens": 120}
        reply = llm.conversation(user="json").chat("Who?", tools=[SAVE], response_format=wanted, **options)
        assert is_person(reply.tool_calls[0].arguments if reply.tool_calls else json.loads(reply.text))


NAMED = {"type": "object", "properties": {"name": {"const": "Ada"}}}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        (NAMED, {**NAMED, "additionalProperties": False}),
        ({"type": "object", "properties": {}}, {"type": "object", "properties": {}, "additionalProperties": False}),
        (
            {"$defs": {"P": NAMED}, "type": "array", "items": {"anyOf": [{"$ref": "#/$defs/P"}, NAMED]}},
            {
                "$defs": {"P": {**NAMED, "additionalProperties": False}},
                "type": "array",
                "items": {"anyOf": [{"$ref": "#/$defs/P"}, {**NAMED, "additionalProperties": False}]},
            },
        ),
        *(
            (as_it_was, as_it_was)
            for as_it_was in (
                {"type": "object"},
                {"type": "object", "properties": {"a": {}}, "additionalProperties": {"type": "string"}},
                {"type": "object", "properties": {"a": {}}, "required": ["b"]},
                {"type": "object", "properties": {"a": {}}, "required": [["a"]]},
                {"type": "object", "properties": {"a": {}}, "minProperties": 2},
                {"properties": {"a": {}}, "anyOf": [{"required": ["b"]}]},
                {"allOf": [NAMED, {"properties": {"age": {"type": "integer"}}}]},
                {"enum": [{"properties": {}}], "default": {"properties": {}}},
            )
        ),
    ],
)
def test_objects_whose_properties_are_named_have_no_others(schema: Any, expected: Any) -> None:
    before = json.dumps(schema)
    assert closed(schema) == expected
    assert json.dumps(schema) == before


def test_a_required_call_makes_up_no_arguments(llm: MemoryLLM) -> None:
    tool = {"type": "function", "function": {"name": "greet", "parameters": NAMED | {"required": ["name"]}}}
    for options in ({}, {"temperature": 1.5, "seed": 1}):
        wanted = {"tools": [tool], "tool_choice": "required", "max_new_tokens": 120}
        reply = llm.conversation(user="greet").chat("Hello!", **wanted, **options)
        assert reply.tool_calls[0].arguments == {"name": "Ada"}
    wanted = {"type": "json_schema", "json_schema": {"name": "nobody", "schema": {"type": "object", "properties": {}}}}
    assert llm.conversation(user="greet").chat("Hello!", response_format=wanted).text == "{}"


def test_a_call_that_is_cut_is_text(llm: MemoryLLM) -> None:
    reply = llm.conversation(user="cut").chat("Save me!", tools=[SAVE], tool_choice="required", max_new_tokens=12)
    assert (reply.tool_calls, reply.finish_reason) == ((), "length")
    assert reply.text.startswith("<tool_call>")
    assert reply.notes


def _asked(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _result(call: ToolCall, content: str) -> dict[str, str]:
    return {"role": "tool", "tool_call_id": call.id, "content": content}


@pytest.mark.parametrize(
    "messages",
    [
        [_result(CALL, "an orphan")],
        [user("Hi"), _result(CALL, "an orphan"), user("And?")],
        [user("Hi"), {"role": "assistant", "tool_calls": [CALL.openai()]}, user("No result.")],
        [
            user("Hi"),
            {"role": "assistant", "tool_calls": [{"name": "gone", "arguments": {"a": 1}}]},
            _result(CALL, "1"),
        ],
    ],
)
def test_dialogues_with_loose_ends_are_answered(llm: MemoryLLM, messages: list[Any]) -> None:
    for tools in ([SAVE], []):
        reply = llm.conversation(user="loose").chat(messages, tools=tools)
        assert reply.usage.prompt_tokens > 0


def test_a_megabyte_from_a_tool_becomes_memory(babbler: Path, tmp_path: Path) -> None:
    """The window stays bounded, every character is memory, and the next turn costs what any turn costs."""
    lines = "".join(f"Line {n} says {n * 7919 % 100_003}. " for n in range(40_000))[:1_000_000]
    with MemoryLLM(babbler, store=tmp_path / "memory.db", window_tokens=512, max_new_tokens=4) as llm:
        ada = llm.conversation(user="ada", session="s")
        call = {"role": "assistant", "tool_calls": [CALL.openai()]}
        reply = ada.chat([user("Read it."), call, _result(CALL, lines)], tools=[ADD])
        assert reply.usage.prompt_tokens <= 512
        assert "readable as memory" in " ".join(reply.notes)
        kept = "".join(m.text for m in ada.memories.list(role="tool", sort="created_at", limit=20_000))
        assert len(kept) == len(lines)
        llm.writer.close(0)
