"""Forms of calls: what models write besides the usual, what tools want, response templates, and any text at all."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tool_templates import FAMILIES, family, tool

from agentmem.model.calls import FORMS, AnswerReader
from agentmem.model.calls.base import fit, types
from agentmem.model.chat import ChatFormat
from agentmem.model.detokenise import Detokeniser
from agentmem.records import ToolCall
from agentmem.tools import check_tools

TOOLS = check_tools(
    [
        tool("get_weather", {"city": {"type": "string"}, "days": {"type": "integer"}}, ["city"]),
        tool("now", {}, []),
    ]
)
BY_NAME = {name: ChatFormat(family(name)).form for name in FAMILIES}
PARIS = ("get_weather", {"city": "Paris"})
NOW: tuple[str, dict[str, Any]] = ("now", {})


def read(form: str, text: str) -> tuple[str, list[tuple[str, dict[str, Any]]]]:
    answer = AnswerReader(BY_NAME[form], TOOLS).read(text)
    return answer.text, [(call.name, call.arguments) for call in answer.calls]


@pytest.mark.parametrize(
    ("form", "text", "words", "calls"),
    [
        ("hermes", '<tool_call>{"name":"now"}', "", [NOW]),
        ("hermes", '<tool_call>{"name": "now", "arguments": "{}"}</tool_call> bye', "bye", [NOW]),
        ("hermes", '<tool_call>{"name": "get_weather", "parameters": {"city": "Paris"}}</tool_call>', "", [PARIS]),
        ("hermes", '<tool_call>{"name":"now"}\n</tool_c', "", [NOW]),
        (
            "hermes",
            'A <tool_call>{"name": "get_weather", "arguments": {"city": "</tool_call>"}}</tool_call>',
            "A",
            [("get_weather", {"city": "</tool_call>"})],
        ),
        ("markup", "<tool_call><function=now></function></tool_call>", "", [NOW]),
        (
            "markup",
            "I look.\n<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\nTexas\n</parameter>\n"
            "<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>",
            "I look.",
            [("get_weather", {"city": "Paris\nTexas", "days": 3})],
        ),
        ("llama", '<|python_tag|>{"name": "now", "parameters": {}}', "", [NOW]),
        ("llama", '{"type": "function", "name": "now", "parameters": null}; {"name": "now"}', "", [NOW, NOW]),
        ("llama", 'Write {"name": "now"}', 'Write {"name": "now"}', []),
        ("mistral", '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Paris"}, "id": "x"}]', "", [PARIS]),
        ("mistral", "[TOOL_CALLS]now[CALL_ID]abc[ARGS]{}[TOOL_CALLS]now{}", "", [NOW, NOW]),
        ("mistral_args", 'Ah. [TOOL_CALLS]get_weather{"city": "Paris"}', "Ah.", [PARIS]),
        ("gemma", '<|tool_call>call:get_weather{city:"Paris"}<tool_call|>', "", [PARIS]),
        ("gemma", "<|tool_call>call:now{}", "", [NOW]),
        (
            "function_gemma",
            "<start_function_call>call:get_weather{city:<escape>a,b}{<escape>,days:-2}<end_function_call>",
            "",
            [("get_weather", {"city": "a,b}{", "days": -2})],
        ),
    ],
)
def test_what_models_write_is_understood(form: str, text: str, words: str, calls: list[Any]) -> None:
    assert read(form, text) == (words, calls)


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("hermes", '<tool_call>{"name": "now"} and {"name": "now"}</tool_call>'),
        ("hermes", '<tool_call>{"name": "now", "arguments": {"a": NaN}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "now", "arguments": {"a": 1e999}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "now", "arguments": {"a": "\\ud800"}}</tool_call>'),
        ("hermes", "<tool_call>" + '{"name":' * 50_000),
        ("markup", "<tool_call><function=now>words</function></tool_call>"),
        ("markup", "<tool_call><function=now><parameter=a>"),
        ("llama", '{"name": "now", "parameters": {}} is what I call'),
        ("mistral", "[TOOL_CALLS] []"),
        ("gemma", "<|tool_call>call:now{a:" + "[" * 50_000),
        ("gemma", '<|tool_call>call:now{a:<|"|>open'),
        ("gemma", "<|tool_call>call:now{a 1}<tool_call|>"),
    ],
)
def test_what_is_broken_comes_back_whole(form: str, text: str) -> None:
    answer = AnswerReader(BY_NAME[form], TOOLS).read(text)
    assert (answer.text, answer.calls) == (text, ())
    assert answer.problem


def test_arguments_are_made_to_fit_where_they_can() -> None:
    schema: dict[str, Any] = {
        "properties": {
            "n": {"type": "integer"},
            "x": {"type": ["number", "null"]},
            "b": {"anyOf": [{"type": "boolean"}, {"$ref": "#/$defs/None"}]},
            "s": {"type": ["string", "integer"]},
            "l": {"type": "array"},
            "e": {"enum": [1, 2]},
            "any": {},
        },
        "$defs": {"None": {"type": "null"}},
    }
    given = {"n": "2", "x": "None", "b": "True", "s": "2", "l": "[1]", "e": "1", "any": "2", "more": "3"}
    assert fit(given, schema) == {**given, "n": 2, "x": None, "b": True, "l": [1], "e": 1}
    wrong = {"n": "two", "x": "[]", "b": "1", "l": "{}", "e": "one", "s": 3}
    assert fit(wrong, schema) == wrong
    assert fit({"n": "2"}, {}) == {"n": "2"}
    loop = {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}
    assert types(loop, loop) == types({"anyOf": [{"anyOf": [3]}]}, {}) == set()


# ------------------------------------------------------------------------------------------------ response templates

RESPONSE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "reasoning_content": {"open": "<think>", "close": "</think>", "content": "text"},
        "tool_calls": {
            "open_pattern": r"\s*\[CALL\]",
            "close": "[/CALL]",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close": "<|im_end|>", "content": "text"},
    },
}
"""A form that is in no table of ours."""


@pytest.fixture(scope="module")
def declared() -> ChatFormat:
    tok = family("hermes")
    tok.response_template = RESPONSE
    tok.add_special_tokens({"extra_special_tokens": ["<|im_start|>", "<|im_end|>", "[CALL]", "[/CALL]"]})
    return ChatFormat(tok)


def answered(chat: ChatFormat, text: str, size: int) -> tuple[str, list[tuple[str, dict[str, Any]]], str]:
    detokeniser, pieces = Detokeniser(chat._tokenizer), []
    for token in chat._tokenizer(text, add_special_tokens=False)["input_ids"]:
        pieces.append(detokeniser.push(token))
    whole = "".join([*pieces, detokeniser.flush()])
    reader = chat.answers(TOOLS)
    answer = reader.read(whole.strip())
    shown = "".join(reader.words(whole[at : at + size] for at in range(0, len(whole), size)))
    assert answer.text.startswith(shown)
    return answer.text, [(call.name, call.arguments) for call in answer.calls], answer.problem


@pytest.mark.parametrize("size", [1, 4, 1000])
def test_a_tokenizers_own_response_template_is_used(declared: ChatFormat, size: int) -> None:
    call = '[CALL]{"name": "get_weather", "arguments": {"city": "Paris", "days": "2"}}[/CALL]'
    both = [("get_weather", {"city": "Paris", "days": 2}), NOW]
    text = f'<think>Hm.</think>\nLet me see.\n{call}\n[CALL]{{"name": "now", "arguments": {{}}}}[/CALL]'
    assert answered(declared, text, size) == ("Let me see.", both, "")
    assert answered(declared, "Just words.", size) == ("Just words.", [], "")
    assert answered(declared, "<think>Only thoughts", size) == ("<think>Only thoughts", [], "")
    forced = declared.answers(TOOLS, constrained=True).read('<tool_call>{"name": "now"}</tool_call>')
    assert [call.name for call in forced.calls] == ["now"]


@pytest.mark.parametrize("size", [1, 4, 1000])
@pytest.mark.parametrize("broken", ['[CALL]{"name": "now", "argu', "[CALL]{not json}[/CALL]", "[CALL][1][/CALL]"])
def test_what_a_response_template_cannot_read_comes_back_whole(declared: ChatFormat, broken: str, size: int) -> None:
    text, calls, problem = answered(declared, f"So: {broken}", size)
    assert (text, calls) == (f"So: {broken}", [])
    assert problem
    text, calls, problem = answered(declared, f"<think>Hm.</think>So: {broken}", size)
    assert (text, calls) == (f"So: {broken}", [])
    assert problem


# ------------------------------------------------------------------------------------------------------ any text

_SCRAPS = st.sampled_from(
    sorted(
        {mark for form in FORMS for mark in (*form.markers, *form.opens)}
        | {"<function=now>", "</function>", "<parameter=city>", "</parameter>", "call:now", "call:get_weather"}
        | {
            '{"name": "now", "arguments": {}}',
            '"name"',
            "now",
            "{",
            "}",
            "[",
            "]",
            ":",
            ",",
            '"',
            "\n",
            " ",
            "1",
            "NaN",
        }
        | {"[CALL]", "[/CALL]", "<think>", "</think>", "<|im_end|>", "\\ud800", "\ufffd", "é"}
    )
)
_TEXTS = st.lists(_SCRAPS | st.text(max_size=3), max_size=25).map("".join)
_CUTS = st.lists(st.integers(1, 5), min_size=1, max_size=5)


def check_any(reader: AnswerReader, text: str, cuts: list[int]) -> None:
    answer = reader.read(text.strip())
    assert all(isinstance(call, ToolCall) and call.name in {"now", "get_weather"} for call in answer.calls)
    assert not (answer.calls and answer.problem)
    pieces, at = [], 0
    while at < len(text):
        size = cuts[len(pieces) % len(cuts)]
        pieces.append(text[at : at + size])
        at += size
    shown = "".join(reader.words(pieces))
    assert answer.text.startswith(shown)
    if not answer.calls and not answer.problem and reader._parser is None:
        assert answer.text == shown


@pytest.mark.parametrize("form", FORMS, ids=lambda form: type(form).__name__)
@given(text=_TEXTS, cuts=_CUTS)
@settings(max_examples=150, deadline=None)
def test_no_text_breaks_a_form(form: Any, text: str, cuts: list[int]) -> None:
    check_any(AnswerReader(form, TOOLS), text, cuts)


@given(text=_TEXTS, cuts=_CUTS)
@settings(max_examples=300, deadline=None)
def test_no_text_breaks_a_response_template(declared: ChatFormat, text: str, cuts: list[int]) -> None:
    check_any(declared.answers(TOOLS), text, cuts)


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.text("ab \n:,", max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1, max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)


@pytest.mark.parametrize("form", [f for f in FORMS if type(f).__name__ != "Markup"], ids=lambda f: type(f).__name__)
@given(arguments=st.dictionaries(st.text("abc", min_size=1, max_size=3), _VALUES, max_size=3))
def test_what_a_form_writes_it_reads(form: Any, arguments: dict[str, Any]) -> None:
    call = ToolCall(name="now", arguments=arguments)
    _, calls = form.read(form.write([call, call]))
    assert [(one.name, one.arguments) for one in calls] == [("now", arguments)] * 2
