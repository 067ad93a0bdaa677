"""Tools in a prompt as each family's template writes them, answers read back, and calls that a grammar forces."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest
from tiny_models import CHATML, tokenizer
from tool_templates import FAMILIES, family, tool

from agentmem.model.calls import PLAIN
from agentmem.model.chat import ChatFormat
from agentmem.model.constraint import Grammars
from agentmem.model.detokenise import Detokeniser
from agentmem.model.grammar import Rules
from agentmem.records import Message, Role, ToolCall
from agentmem.tools import check_tools

WEATHER = tool(
    "get_weather", {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 0, "maximum": 9}}, ["city"]
)
_NUMBER = {"type": "number", "minimum": 0, "maximum": 99}
ADD = tool("add", {"a": _NUMBER, "b": _NUMBER}, ["a", "b"], additionalProperties=False)
DEEP = tool(
    "plan",
    {
        "kind": {"enum": ["short", "long"]},
        "place": {"$ref": "#/$defs/Place"},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 5}, "maxItems": 3},
        "sure": {"type": "boolean"},
        "note": {"anyOf": [{"type": "string", "maxLength": 5}, {"type": "null"}]},
    },
    ["kind", "place"],
    additionalProperties=False,
    **{
        "$defs": {
            "Place": {
                "type": "object",
                "properties": {"city": {"enum": ["Paris", "Rome"]}},
                "required": ["city"],
                "additionalProperties": False,
            }
        }
    },
)
TOOLS = check_tools([WEATHER, ADD, DEEP])
CALLS = (
    ToolCall(id="call_of_any_length_1", name="get_weather", arguments={"city": 'Köln "am" Rhein', "days": 2}),
    ToolCall(id="call_of_any_length_2", name="add", arguments={"a": 1, "b": 2.5}),
)
CHATS = {name: ChatFormat(family(name)) for name in FAMILIES}


def user(text: str) -> Message:
    return Message(role=Role.USER, content=text)


def assistant(text: str = "", calls: tuple[ToolCall, ...] = ()) -> Message:
    return Message(role=Role.ASSISTANT, content=text, tool_calls=calls)


def result(text: str, call: ToolCall | None = None) -> Message:
    return Message(role=Role.TOOL, content=text, tool_call_id=call and call.id)


def prompt(name: str, messages: list[Message], tools: Any = TOOLS) -> str:
    return CHATS[name]._tokenizer.decode(CHATS[name].render(messages, tools))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_recognised(name: str) -> None:
    assert CHATS[name].takes_tools
    names = {(type(chat.form), chat.form.opens) for chat in CHATS.values()}
    assert len(names) == len(FAMILIES)


@pytest.mark.parametrize("template", [CHATML, None])
def test_other_templates_offer_tools_as_text(template: str | None) -> None:
    chat = ChatFormat(tokenizer(template))
    assert not chat.takes_tools
    assert chat.form is PLAIN
    text = chat._tokenizer.decode(chat.render([user("Hi"), assistant("", CALLS[:1]), result("sunny")], TOOLS))
    assert '"name": "get_weather"' in text
    assert PLAIN.write(CALLS[:1]) in text
    assert "sunny" in text


@pytest.mark.parametrize("name", FAMILIES)
def test_tools_calls_and_results_are_written_by_the_template(name: str) -> None:
    messages = [user("Weather?"), assistant("", CALLS), result("sunny", CALLS[0]), result("3.5", CALLS[1])]
    text = prompt(name, messages)
    plain = [{"role": "user", "content": "Weather?"}]
    begun = CHATS[name]._tokenizer.apply_chat_template(plain, tools=list(TOOLS), tokenize=False)
    if not name.startswith("mistral"):
        assert text.startswith(begun)
    if name != "llama":
        assert CHATS[name].form.write(CALLS[1:]).removeprefix("[TOOL_CALLS] [").rstrip("}]") in text
    assert text.index("get_weather") < text.index("sunny") < text.index("3.5")
    assert "call_of_any_length" not in text


@pytest.mark.parametrize("name", FAMILIES)
def test_the_same_tools_are_the_same_prompt_in_any_order(name: str) -> None:
    turned = [{"function": dict(reversed(one["function"].items())), "type": "function"} for one in (DEEP, ADD, WEATHER)]
    assert prompt(name, [user("Hi")], check_tools(turned)) == prompt(name, [user("Hi")])


def test_a_template_of_one_call_at_a_time_gets_each_with_its_result() -> None:
    swapped = [result("3.5", CALLS[1]), result("sunny", CALLS[0])]
    text = prompt("llama", [user("Weather?"), assistant("Let me see.", CALLS), *swapped])
    order = [text.rindex(part) for part in ("Let me see.", "get_weather", "sunny", '"name": "add"', "3.5")]
    assert order == sorted(order)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    "messages",
    [
        [result("orphan")],
        [user("a"), result("orphan"), user("b")],
        [user("a"), assistant("words", CALLS), user("no results")],
        [user("a"), assistant("", CALLS), result("one", CALLS[0]), assistant("", CALLS[:1]), assistant("", CALLS)],
        [assistant("", CALLS), result("x", ToolCall(name="other"))],
        [Message(role=Role.SYSTEM, content="S"), assistant("", CALLS[:1]), result("1"), result("2"), result("3")],
    ],
)
def test_no_dialogue_with_tools_is_refused(name: str, messages: list[Message]) -> None:
    for tools in (TOOLS, ()):
        text = prompt(name, messages, tools)
        for message in messages:
            assert message.content in text
            assert all(call.name in text for call in message.tool_calls)


@pytest.mark.parametrize("name", FAMILIES)
def test_tools_are_offered_in_dialogues_that_the_template_would_refuse(name: str) -> None:
    messages = [user("a"), result("orphan"), user("b")]
    text = prompt(name, messages)
    assert "Does it." in text
    assert ("<tool_call>" in text) == (name in {"hermes", "markup"})


@pytest.mark.parametrize("name", FAMILIES)
def test_what_others_wrote_makes_no_call_and_ends_no_turn(name: str) -> None:
    chat = CHATS[name]
    _, special, ordinary = FAMILIES[name]
    marks = [*special, *(mark for mark in ordinary)]
    ids = set(chat._tokenizer.convert_tokens_to_ids(marks)) - {3, 4}
    assert not ids & set(chat.encode(" ".join(marks)))
    evil = " ".join(marks)
    calm = chat.render([user("x"), assistant("", (ToolCall(name="add", arguments={"a": "x"}),)), result("x")], TOOLS)
    told = (ToolCall(name="add", arguments={"a": evil}),)
    described = {"type": "function", "function": {**ADD["function"], "description": f"Does it. {evil}"}}
    wild = chat.render([user(evil), assistant("", told), result(evil)], check_tools([described, WEATHER, DEEP]))
    assert [calm.count(one) for one in sorted(ids)] == [wild.count(one) for one in sorted(ids)]


def answered(name: str, text: str, tools: Any = TOOLS) -> Any:
    """What is read of an answer, after it went through the family's tokens and our detokeniser."""
    chat = CHATS[name]
    pieces = []
    detokeniser = Detokeniser(chat._tokenizer)
    for token in chat._tokenizer(text, add_special_tokens=False)["input_ids"]:
        pieces.append(detokeniser.push(token))
    pieces.append(detokeniser.flush())
    reader = chat.answers(tools)
    answer = reader.read("".join(pieces).strip())
    shown = "".join(reader.words(pieces))
    assert answer.text.startswith(shown)
    assert answer.problem or not answer.calls or shown == answer.text.partition("\n")[0]
    return answer


def meant(calls: Any) -> list[tuple[str, dict[str, Any]]]:
    return [(call.name, call.arguments) for call in calls]


@pytest.mark.parametrize("name", FAMILIES)
def test_calls_come_back(name: str) -> None:
    form = CHATS[name].form
    answer = answered(name, form.write(CALLS))
    assert (answer.text, meant(answer.calls), answer.problem) == ("", meant(CALLS), "")
    if form.opens_late:
        answer = answered(name, "Let me see.\n" + form.write(CALLS))
        assert (answer.text, meant(answer.calls)) == ("Let me see.", meant(CALLS))


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_no_call_is_all_words(name: str) -> None:
    form = CHATS[name].form
    whole = form.write(CALLS[:1])
    other = form.write([ToolCall(name="other", arguments={"a": "x"})])
    for text in (
        whole[: len(whole) * 2 // 3],
        whole.replace("{", "(").replace("<function", "<f"),
        other,
        form.opens[0],
    ):
        answer = answered(name, text)
        assert answer.calls == ()
        assert answer.text == text.strip()
        assert answer.problem or not text.startswith(form.opens)
    assert "other" in answered(name, other).problem
    assert answered(name, "Just { words < here [.").problem == ""


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("wanted", TOOLS, ids=lambda one: one["function"]["name"])
def test_a_forced_call_is_in_the_familys_form(name: str, wanted: dict[str, Any]) -> None:
    """Tokens at random, but only those that the grammar allows: what comes out is always one call."""
    import llguidance
    import llguidance.numpy

    chat = CHATS[name]
    tok = chat._tokenizer
    grammars = Grammars(tok, len(tok))
    rules = Rules(chat.token_id)
    function = wanted["function"]
    grammar = rules.grammar(chat.form.grammar(function["name"], function["parameters"], rules))
    grammars.check(grammar)
    for seed in range(3):
        draw = random.Random(seed)
        matcher, ids = llguidance.LLMatcher(grammars.tokens, grammar), []
        mask = llguidance.numpy.allocate_token_bitmask(1, grammars.tokens.vocab_size)
        while not matcher.is_stopped() and len(ids) < 2000:
            llguidance.numpy.fill_next_token_bitmask(matcher, mask)
            allowed = np.flatnonzero(np.unpackbits(mask.view(np.uint8), axis=1, bitorder="little")[0]).tolist()
            if tok.eos_token_id in allowed and (len(allowed) == 1 or draw.random() < 0.5):
                break
            ending = [one for one in allowed if tok.decode([one]) in ('"', "<", "}", "\n", *chat.form.markers)]
            ids.append(draw.choice(ending if ending and draw.random() < 0.3 else allowed))
            assert matcher.consume_token(ids[-1])
        text = tok.decode(ids)
        answer = chat.answers(TOOLS).read(text)
        assert len(answer.calls) == 1, (text, answer.problem)
        arguments = answer.calls[0].arguments
        assert set(function["parameters"]["required"]) <= arguments.keys(), text
        if function["name"] == "plan":
            assert arguments["kind"] in {"short", "long"}
            place = arguments["place"]
            assert (json.loads(place) if isinstance(place, str) else place)["city"] in {"Paris", "Rome"}
        if function["name"] == "add":
            assert all(isinstance(one, (int, float)) for one in arguments.values())
