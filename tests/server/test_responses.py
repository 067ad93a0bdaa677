"""``/v1/responses`` through OpenAI's own client: a dialogue of which only what is new is sent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI
from server_world import Running, running

from agentmem import MemoryLLM, Scope

MODEL = "bundled"


@pytest.fixture
def client(server: Running) -> OpenAI:
    return server.openai()


def texts(llm: MemoryLLM, user: str) -> list[str]:
    return [memory.text for memory in llm.store.scope(Scope(user=user)).list(sort="created_at")]


def test_only_what_is_new_is_sent(client: OpenAI, llm: MemoryLLM) -> None:
    first = client.responses.create(model=MODEL, input="My dog is called Biscuit.", user="new")
    assert first.status == "completed"
    second = client.responses.create(
        model=MODEL, input="What is my dog called?", previous_response_id=first.id, user="new"
    )
    assert second.output_text == "Your dog is called Biscuit."
    assert second.previous_response_id == first.id
    assert second.model_extra["agentmem"]["memories"] == []  # the window shows it
    assert second.usage.total_tokens == second.usage.input_tokens + second.usage.output_tokens
    assert texts(llm, "new") == [
        "My dog is called Biscuit.",
        first.output_text,
        "What is my dog called?",
        "Your dog is called Biscuit.",
    ]
    third = client.responses.create(model=MODEL, input="What is my dog called?", user="new")
    assert third.output_text == "Your dog is called Biscuit."
    assert "Biscuit" in third.model_extra["agentmem"]["memories"][0]["text"]  # another dialogue: read as memory
    assert third.usage.input_tokens_details.cached_tokens > 0


@pytest.mark.parametrize("echo", ["items as they came", "words only"])
def test_who_sends_the_whole_dialogue_each_time_is_not_remembered_twice(
    client: OpenAI, llm: MemoryLLM, echo: str
) -> None:
    said: list[Any] = []
    told = ["My dog is called Biscuit.", "I live in Oslo.", "What is my dog called?"]
    for words in told:
        said.append({"role": "user", "content": words})
        answer = client.responses.create(model=MODEL, input=said, user=f"whole {echo}")
        if echo == "words only":
            said.append({"role": "assistant", "content": answer.output_text})
        else:
            said += [item.model_dump() for item in answer.output]
    assert "Biscuit" in answer.output_text
    found = texts(llm, f"whole {echo}")
    assert [text for text in found if text in told] == told
    assert len(found) == 6, found
    # From any of the answers the dialogue goes on with what is new only, too.
    more = client.responses.create(
        model=MODEL, input="Where do I live?", previous_response_id=answer.id, user=f"whole {echo}"
    )
    assert len(texts(llm, f"whole {echo}")) == 8
    assert more.previous_response_id == answer.id


def test_a_dialogue_branches_where_it_is_told_to(client: OpenAI) -> None:
    first = client.responses.create(model=MODEL, input="Hello!", user="branches")
    say = {"model": MODEL, "user": "branches", "previous_response_id": first.id}
    answers = [client.responses.create(input="Hello again!", **say, temperature=1.5) for _ in range(3)]
    assert len({answer.id for answer in answers}) == 3
    for answer in answers:
        later = client.responses.create(
            model=MODEL, user="branches", input="What did you say?", previous_response_id=answer.id
        )
        assert later.previous_response_id == answer.id


def test_a_dialogue_goes_on_after_a_restart(tmp_path: Path) -> None:
    ids = [None]
    for said in ("My dog is called Biscuit.", "What a lovely day.", "What is my dog called?"):
        with MemoryLLM(store=tmp_path / "memory.db", max_new_tokens=24) as llm, running(llm) as server:
            reply = server.openai().responses.create(model=MODEL, input=said, previous_response_id=ids[-1])
            ids.append(reply.id)
    assert reply.output_text == "Your dog is called Biscuit."
    assert reply.model_extra["agentmem"]["memories"] == []


def test_events_come_in_order_and_add_up(client: OpenAI) -> None:
    client.responses.create(model=MODEL, input="My dog is called Biscuit.", user="events")
    events = list(client.responses.create(model=MODEL, input="What is my dog called?", user="events", stream=True))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    final = events[-1].response
    assert text == final.output_text == "Your dog is called Biscuit."
    assert events[0].response.id == final.id
    with client.responses.stream(model=MODEL, input="Hello!", previous_response_id=final.id, user="events") as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().previous_response_id == final.id


def test_an_answer_that_is_cut_says_so(client: OpenAI) -> None:
    reply = client.responses.create(model=MODEL, input="My dog is called Biscuit.", max_output_tokens=2, user="cut")
    assert reply.status == "incomplete"
    assert reply.incomplete_details.reason == "max_output_tokens"
    events = list(client.responses.create(model=MODEL, input="Hello!", max_output_tokens=1, user="cut", stream=True))
    assert events[-1].type == "response.incomplete"


def test_what_is_not_to_be_stored_is_not(client: OpenAI, llm: MemoryLLM) -> None:
    reply = client.responses.create(model=MODEL, input="My dog is called Biscuit.", store=False, user="unstored")
    assert reply.output_text
    assert texts(llm, "unstored") == []
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model=MODEL, input="Hello!", previous_response_id=reply.id, user="unstored")


def test_items_of_every_kind(client: OpenAI, llm: MemoryLLM) -> None:
    tool = {"type": "function", "name": "add", "parameters": {"type": "object"}, "strict": False}
    items: list[Any] = [
        {"role": "developer", "content": "Be brief."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "What is 4 and 5?"}]},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "function_call", "call_id": "c1", "name": "add", "arguments": '{"a": 4, "b": 5}'},
        {"type": "function_call_output", "call_id": "c1", "output": "9"},
    ]
    reply = client.responses.create(model=MODEL, input=items, tools=[tool], instructions="Be kind.", user="items")
    assert reply.tools[0].name == "add"
    assert texts(llm, "items")[:3] == [
        "What is 4 and 5?",
        'Calling add with {"a": 4, "b": 5}',
        "9",
    ]


def test_answers_of_others_are_not_found(locked: Running, keys: tuple[Path, dict[str, str]]) -> None:
    ada, bob = (locked.openai(keys[1][name]) for name in ("ada", "bob"))
    reply = ada.responses.create(model=MODEL, input="My dog is called Biscuit.")
    for id in (reply.id, "resp_nope", f"resp_{'0' * 64}"):
        with pytest.raises(openai.NotFoundError) as caught:
            bob.responses.create(model=MODEL, input="Hello!", previous_response_id=id)
        assert caught.value.response.json()["error"] == {
            "message": "there is no such previous response",
            "type": "invalid_request_error",
            "param": "previous_response_id",
            "code": "not_found",
        }


def test_an_answer_of_earlier_is_looked_at_and_forgotten(client: OpenAI, llm: MemoryLLM) -> None:
    reply = client.responses.create(model=MODEL, input="My dog is called Biscuit.", user="stored")
    mine: dict[str, Any] = {"extra_headers": {"X-Agentmem-User": "stored"}}
    again = client.responses.retrieve(reply.id, **mine)
    assert (again.id, again.status, again.model) == (reply.id, "completed", MODEL)
    assert again.output == reply.output
    assert again.output_text == reply.output_text
    assert client.responses.retrieve(reply.id, extra_query={"user": "stored"}).id == reply.id
    client.responses.delete(reply.id, **mine)
    assert texts(llm, "stored") == ["My dog is called Biscuit."]  # what the user said is a memory of its own
    for call in (client.responses.retrieve, client.responses.delete):
        with pytest.raises(openai.NotFoundError) as caught:
            call(reply.id, **mine)
        assert caught.value.code == "not_found"


def test_calls_of_an_earlier_answer_are_calls_again(client: OpenAI) -> None:
    nothing = {"type": "object", "properties": {}, "additionalProperties": False}
    tool = {"type": "function", "name": "look_up", "parameters": nothing, "strict": False}
    asked: dict[str, Any] = {"model": MODEL, "input": "Look it up.", "tools": [tool], "tool_choice": "required"}
    asked["max_output_tokens"] = 100
    reply = client.responses.create(**asked, user="calls")
    assert [item.type for item in reply.output] == ["function_call"]
    again = client.responses.retrieve(reply.id, extra_query={"user": "calls"})
    assert again.output == reply.output


def test_answers_are_looked_at_and_forgotten_by_their_own_user_only(
    locked: Running, keys: tuple[Path, dict[str, str]]
) -> None:
    ada, bob = (locked.openai(keys[1][name]) for name in ("ada", "bob"))
    reply = ada.responses.create(model=MODEL, input="My dog is called Biscuit.")
    for call in (bob.responses.retrieve, bob.responses.delete):
        with pytest.raises(openai.NotFoundError):
            call(reply.id)
        with pytest.raises(openai.PermissionDeniedError):
            call(reply.id, extra_headers={"X-Agentmem-User": "ada"})
    assert ada.responses.retrieve(reply.id).output_text == reply.output_text


@pytest.mark.parametrize(
    "change",
    [
        {"input": ""},
        {"input": []},
        {"input": [{"type": "item_reference", "id": "x"}]},
        {"input": [{"content": "no role"}]},
        {"input": [{"type": "function_call", "call_id": "c", "arguments": "{}"}]},
        {"input": [{"type": "function_call", "call_id": "c", "name": "add", "arguments": "[1]"}]},
        {"tools": [{"type": "web_search"}]},
        {"tool_choice": "required"},
        {"text": {"format": {"type": "xml"}}},
        {"max_output_tokens": 0},
        {"background": True},
    ],
)
def test_bad_requests_are_refused(client: OpenAI, change: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(**{"model": MODEL, "input": "Hello!", **change})
    assert json.loads(caught.value.response.content)["error"]["message"]


def test_an_answers_id_holds_the_turn_that_it_answers_as_it_is_stored(client: OpenAI, llm: MemoryLLM) -> None:
    items: list[Any] = [{"type": "function_call_output", "call_id": "c1", "output": ""}]
    first = client.responses.create(model=MODEL, input=items, user="nothing")
    (asked,) = llm.memories(user="nothing").list(turns=[first.id.removeprefix("resp_")[:32]])
    assert asked.text == "(nothing)"
