"""The fourth stage of the bundled model's training: requests, calls and results, and their layout."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from agentmem import Message, Role, ToolCall
from agentmem.llm import bundled_model
from agentmem.model.chat import ChatFormat
from agentmem.tools import check_tools
from agentmem.training import calling, finding
from agentmem.training.batches import CONTEXT, Packer, collate
from agentmem.training.calls import Calls
from agentmem.training.chat_template import CHAT_TEMPLATE
from agentmem.training.errands import draw_errand
from agentmem.training.pointing import Look, Pointing
from agentmem.training.requests import draw_request
from agentmem.training.toolbox import draw_tools
from agentmem.training.turns import Errand, call, user
from agentmem.training.values import Split, is_heldout


@pytest.fixture(scope="module")
def calls() -> Calls:
    tokenizer = AutoTokenizer.from_pretrained(bundled_model())
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    return Calls(Packer(tokenizer))


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return ChatFormat(AutoTokenizer.from_pretrained(bundled_model()))


def test_the_bundled_tokenizer_has_the_template_of_training() -> None:
    assert AutoTokenizer.from_pretrained(bundled_model()).chat_template == CHAT_TEMPLATE


def test_the_template_takes_tools_and_leaves_dialogues_without_them_as_they_were(chat: ChatFormat) -> None:
    assert chat.takes_tools
    turns = [Message(role=Role.SYSTEM, content="Be kind."), user("Hello!"), Message(role=Role.ASSISTANT, content="Hi!")]
    text = "<s><|system|> Be kind.<|end|><|user|> Hello!<|end|><|assistant|> Hi!<|end|><|assistant|>"
    assert chat.render(turns) == chat._ids(text)


def offered(chat: ChatFormat, said: str = "Hi", **parameters: object) -> str:
    """How a tool with these parameters is offered to who says this."""
    function = {"name": "getRoomRates_v2", "description": "Gives\n  rates.", "parameters": parameters}
    tools = check_tools([{"type": "function", "function": function}])
    text = chat._tokenizer.decode(chat.render([user(said)], tools))
    return str(text).partition("Tools:\n")[2].partition("<|end|>")[0]


def test_a_tool_is_two_lines(chat: ChatFormat) -> None:
    properties = {"a": {"type": "integer", "title": "A"}, "b": {"type": "string", "description": "Which one."}}
    assert offered(chat, properties=properties, required=["a"], additionalProperties=False) == (
        '- get room rates v2: Gives rates. b: Which one.\ngetRoomRates_v2 {"a": number, "b": word?}'
    )
    assert offered(chat) == "- get room rates v2: Gives rates.\ngetRoomRates_v2 {}"


@pytest.mark.parametrize(
    ("said", "title"),
    [
        ("What are the rates?", "- get room rates* v2: Gives rates.*"),
        ("Rates: (room)!", "- get room* rates* v2: Gives rates.*"),
        ("Call getRoomRates_v2.", "- get room rates v2*: Gives rates."),
        ("Call getroomratesv2, please.", "- get* room* rates* v2*: Gives rates."),
        ("How can I get it?", "- get room rates v2: Gives rates."),
        ("", "- get room rates v2: Gives rates."),
    ],
)
def test_what_the_request_has_too_is_marked(chat: ChatFormat, said: str, title: str) -> None:
    assert offered(chat, said).splitlines()[0] == title


def test_the_last_request_is_what_is_marked_and_what_tools_stand_behind(chat: ChatFormat) -> None:
    tools = check_tools(WEATHER)
    offer = '<|system|> Tools:\n- flint*: Strikes a flint.*\nflint {"where": word}<|end|>'
    turns = [user("Hi"), Message(role=Role.ASSISTANT, content="Yes?"), user("A flint!"), call("flint", {"where": "x"})]
    text = chat._tokenizer.decode(chat.render([*turns, Message(role=Role.TOOL, content="ok")], tools))
    assert text.count("Tools:") == 1
    assert f"A flint!<|end|>{offer}<|assistant|> <tool_call>" in text
    alone = chat._tokenizer.decode(chat.render([Message(role=Role.TOOL, content="ok")], tools))
    assert alone.startswith("<s><|system|> Tools:\n- flint: Strikes")


@pytest.mark.parametrize(
    ("schema", "written"),
    [
        ({"enum": ["x", 3, None]}, '"x" or 3 or null'),
        ({"const": "x"}, '"x"'),
        ({"type": ["number", "null"]}, "number or null"),
        ({"anyOf": [{"type": "boolean"}, {"type": "null"}]}, "true or false or null"),
        ({"type": "array", "items": {"type": "string"}}, "list"),
        ({"$ref": "#/$defs/x"}, "object"),
        ({"oneOf": [{"$ref": "#/$defs/x"}, {"anyOf": [{"oneOf": []}]}]}, "object or any"),
        ({"properties": {"c": {"type": "object"}}}, "object"),
        ({"type": "date"}, "date"),
        (True, "any"),
        ({}, "any"),
        ({"enum": 3, "type": 4, "anyOf": 5, "description": 6}, "any"),
        ({"enum": {"x": 1}, "type": {}, "oneOf": "y"}, "any"),
        (None, "any"),
    ],
)
def test_no_schema_is_too_odd_to_be_written(chat: ChatFormat, schema: object, written: str) -> None:
    assert offered(chat, properties={"k": schema}, required=["k"]).endswith(f'{{"k": {written}}}')


def test_odd_parameters_are_written_somehow(chat: ChatFormat) -> None:
    for required in (3, "k", {"k": 1}, None):
        assert '{"k": any' in offered(chat, properties={"k": {}}, required=required)


WEATHER = [
    {
        "type": "function",
        "function": {
            "name": "flint",
            "description": "Strikes a flint.",
            "parameters": {"type": "object", "properties": {"where": {"type": "string"}}, "required": ["where"]},
        },
    }
]
SPLITS: tuple[Split, ...] = ("train", "heldout")


@given(st.integers(0, 10_000), st.integers(1, 4))
def test_no_tool_is_in_both_splits(seed: int, n: int) -> None:
    for split in SPLITS:
        tools = draw_tools(random.Random(seed), n, split)
        assert [tool.name for tool in tools] == sorted({tool.name for tool in tools})
        assert len(tools) == n
        for tool in tools:
            assert is_heldout(tool.name) == (split == "heldout")
            keys = ",".join(sorted(a.key for a in tool.arguments))
            assert len(tool.arguments) < 2 or is_heldout(keys) == (split == "heldout")
            assert check_tools([tool.openai()])


@given(st.integers(0, 10_000))
def test_a_request_says_every_argument_of_its_call(seed: int) -> None:
    rng = random.Random(seed)
    (tool,) = draw_tools(rng, 1, SPLITS[seed % 2])
    request = draw_request(rng, tool, SPLITS[seed % 2])
    assert {a.key for a in tool.arguments if a.required} <= set(request.arguments) <= {a.key for a in tool.arguments}
    for one in request.arguments.values():
        assert (str(one).lower() if isinstance(one, bool) else str(one)) in request.said.replace(".0", "")
    assert "{" not in request.said


@given(st.integers(0, 10_000))
@example(71)  # a tool that hands over, with an argument that is left to say
def test_a_dialogue_holds_what_its_calls_and_answers_say(seed: int) -> None:
    errand = draw_errand(random.Random(seed), [], SPLITS[seed % 2])
    names = [tool["function"]["name"] for tool in errand.tools]
    assert names == sorted(names)
    before = " ".join(chunk.text for chunk in errand.chunks)
    for turn in errand.turns:
        for made in turn.tool_calls:
            assert made.name in names
            for one in made.arguments.values():
                written = str(one).lower() if isinstance(one, bool) else str(one)
                assert written in before or made.name.startswith(("final_", "return_", "submit_"))
        if turn.content.startswith("The result is: "):
            assert turn.content.removeprefix("The result is: ") in before
        before += f" {turn.content}"


@given(st.integers(0, 10_000))
def test_a_row_is_the_text_of_the_template(calls: Calls, chat: ChatFormat, seed: int) -> None:
    errand = draw_errand(random.Random(seed), [], SPLITS[seed % 2])
    laid = calls.row(errand, random.Random(seed), spread=0)
    columns = laid.row.columns
    context = [column[0] for column in columns if column[2] == CONTEXT]
    rendered = chat.render(errand.turns, check_tools(errand.tools))
    assert calls.decode(context) + "<|assistant|>" == calls.decode(rendered)
    for span in laid.spans:
        assert all(column[4] > 0 for column in columns[span.start : span.end])
        assert calls.decode([column[0] for column in columns[span.start : span.end]]).endswith("<|end|>")
    for asking, wanted, what in laid.pointers:
        assert wanted < asking
        copied, source = (calls.decode([column[0]]).strip() for column in (columns[asking + 1], columns[wanted]))
        if what is Look.BEYOND:
            assert calls.decode([columns[wanted - 1][0]]) == "."
            assert (copied == ".") == source.isdigit()
        else:
            assert source.startswith(copied) or copied.startswith(source)
        assert what is not Look.NAME or columns[asking][0] == calls._packer.text('"')[0]


def test_a_value_is_copied_in_the_pieces_that_it_has_in_a_sentence(calls: Calls) -> None:
    for text in ("Vofta", "Stiesothal", "02519", "K7-402", "San Francisco", "fünf", "x"):
        said = calls._packer.text(f" {text}")
        assert calls.value(text)[-len(said) + 1 :] == said[1:] or len(said) == 1
        assert calls.decode(calls.value(text)) == text


def test_a_step_is_a_pure_function_of_its_number(calls: Calls) -> None:
    said = [("Book it.", "I see.")] * 9
    straight, jumped = (calling.Errands(calls, said, 900) for _ in range(2))
    for step in (0, 1, calling.PARTS):
        one, pointers = straight.at(step)
    two, again = jumped.at(calling.PARTS)
    assert pointers == again
    assert torch.equal(one.ids, two.ids)
    assert torch.equal(one.weights, two.weights)
    assert one.ids.shape[1] <= calling.TOKENS


def test_a_head_learns_where_to_look(calls: Calls) -> None:
    model = AutoModelForCausalLM.from_pretrained(bundled_model())
    model.set_attn_implementation("sdpa")
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    errand = Errand(WEATHER, [], [user("The flint at 3.5."), call("flint", {"where": 3.5})])
    laid = calls.row(errand, random.Random(1), spread=0)
    batch, pointers = collate([laid.row]), [(0, *one) for one in laid.pointers]
    assert {what for *_, what in pointers} == set(Look)
    losses = []
    for _ in range(5):
        with Pointing(model) as pointing:
            model(input_ids=batch.ids, position_ids=batch.positions, attention_mask=batch.mask(), use_cache=False)
        losses.append(pointing.loss(batch, pointers))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]


def test_what_pointing_reads_is_attention(calls: Calls) -> None:
    model = AutoModelForCausalLM.from_pretrained(bundled_model(), attn_implementation="eager")
    errand = Errand(WEATHER, [], [user("The flint in Vofta."), call("flint", {"where": "Vofta"})])
    laid = calls.row(errand, random.Random(1), spread=0)
    batch = collate([laid.row])
    inputs = {"input_ids": batch.ids, "position_ids": batch.positions, "use_cache": False, "output_attentions": True}
    mask = torch.zeros(batch.mask().shape).masked_fill(~batch.mask(), torch.finfo(torch.float32).min)
    with torch.no_grad(), Pointing(model) as pointing:
        read = model(attention_mask=mask, **inputs).attentions[-1]
    for asking, wanted, what in laid.pointers:
        looks = -read[0][:, asking, wanted].log()
        expected = looks.mean() if what is Look.NAME else looks.amin()
        assert pointing.loss(batch, [(0, asking, wanted, what)]).item() == pytest.approx(expected.item(), abs=0.1)


def test_the_rate_rises_holds_and_falls_to_zero() -> None:
    rates = [calling.rate_at(step, 900) for step in range(900)]
    assert rates[0] < rates[40] == 1.0
    assert rates[500] == 1.0
    assert 0 < rates[-1] < 0.01


def test_the_command_resumes_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calling, "DIALOGUES", 2)
    monkeypatch.setattr(finding, "LENGTHS", (120,))
    monkeypatch.setattr(finding, "TOKENS", 240)
    monkeypatch.setattr(calling, "TURNS", 8)
    monkeypatch.setattr(calling, "report", lambda model, packer: {})
    settings = {"base": bundled_model(), "rate": 1e-4, "threads": 1, "utterances": None, "book": None, "tokens": 300}
    for steps in (1, 2):
        calling.train(out=tmp_path, steps=steps, every=9, **settings)  # type: ignore[arg-type]  # by name
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [1, 2]
    assert log[1]["n"] > 0
    assert json.loads((tmp_path / "progress.json").read_text()) == {"step": 2}


def test_what_is_wrong_is_shown(calls: Calls) -> None:
    errand = Errand([], [], [user("Call f."), call("f", {"a": 1})])
    batch, ((span,),) = calls.batch([errand], random.Random(1), spread=0)
    meant = batch.ids[0, span.start : span.end]
    said = meant.clone()
    said[-1] = 5
    assert calling.compared(calls, batch, 0, span, said, meant).startswith("call1: ' Call f.")
    assert ToolCall(name="f", arguments={"a": 1}).name in calls.decode(meant.tolist())
