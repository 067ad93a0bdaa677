"""Calls that are required and answers of a given form, through OpenAI's own client: tools, ``.parse``, streaming."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel, ConfigDict, Field
from server_world import running

from agentmem import MemoryLLM

MODEL = "babbler0"


class Person(BaseModel):
    name: Literal["Ada", "Bob"]
    age: int = Field(ge=0, le=99)


class Place(BaseModel):
    model_config = ConfigDict(extra="forbid")

    city: Literal["Paris", "Rome"]


class Trip(BaseModel):
    """A schema with a reference inside."""

    model_config = ConfigDict(extra="forbid")

    place: Place
    days: int = Field(ge=0, le=9)


TRIP = {"type": "function", "function": {"name": "plan_trip", "parameters": Trip.model_json_schema()}}
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 9}},
            "required": ["a"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def client(babbler: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    """A model that by itself would say one word for ever; the tools' descriptions have room in its context."""
    store = tmp_path_factory.mktemp("structured") / "memory.db"
    with MemoryLLM(babbler, store=store) as llm, running(llm) as server:
        assert llm.name == MODEL
        yield server.openai()


def asked(text: str = "Plan a trip!", **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 200, **more}


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_a_required_tool_is_called_with_arguments_of_its_schema(client: OpenAI, temperature: float) -> None:
    options = asked(tools=[TRIP, ADD], temperature=temperature, seed=5, user=f"call{temperature}")
    choice = client.chat.completions.create(**options, tool_choice="required").choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    (call,) = choice.message.tool_calls
    assert call.function.name in {"plan_trip", "add"}
    named = {"type": "function", "function": {"name": "plan_trip"}}
    (call,) = client.chat.completions.create(**options, tool_choice=named).choices[0].message.tool_calls
    assert Trip.model_validate_json(call.function.arguments)


def test_a_streamed_call_and_its_result(client: OpenAI) -> None:
    options = asked(tools=[TRIP], user="loop")
    with client.chat.completions.stream(**options, tool_choice="required") as stream:
        for _ in stream:
            pass
        message = stream.get_final_completion().choices[0].message
    (call,) = message.tool_calls
    assert Trip.model_validate_json(call.function.arguments)
    said = [*options["messages"], message.model_dump(exclude_none=True, exclude={"parsed"})]
    said.append({"role": "tool", "tool_call_id": call.id, "content": "Booked."})
    reply = client.chat.completions.create(**{**options, "messages": said})
    assert reply.choices[0].finish_reason in {"stop", "length"}


def test_parse_gives_an_object(client: OpenAI) -> None:
    reply = client.chat.completions.parse(**asked("Who are you?", user="parse"), response_format=Person)
    assert isinstance(reply.choices[0].message.parsed, Person)
    reply = client.chat.completions.create(**asked("Who?", user="parse"), response_format={"type": "json_object"})
    if reply.choices[0].finish_reason == "stop":  # or cut, as OpenAI's would be
        assert isinstance(json.loads(reply.choices[0].message.content), dict)


def test_responses_do_the_same(client: OpenAI) -> None:
    asked = {"model": MODEL, "max_output_tokens": 200, "user": "responses"}
    with client.responses.stream(**asked, input="Who are you?", text_format=Person) as stream:
        for _ in stream:
            pass
        final = stream.get_final_response()
    assert isinstance(final.output_parsed, Person)
    tool = {"type": "function", "strict": True, **TRIP["function"]}
    choice = {"type": "function", "name": "plan_trip"}
    events = list(client.responses.create(**asked, input="Plan a trip!", tools=[tool], tool_choice=choice, stream=True))
    (call,) = events[-1].response.output
    assert Trip.model_validate_json(call.arguments)
    done = next(event for event in events if event.type == "response.function_call_arguments.done")
    assert done.arguments == call.arguments
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "Booked."}
    later = client.responses.create(**asked, input=[result], tools=[tool], previous_response_id=events[-1].response.id)
    assert later.status in {"completed", "incomplete"}


@pytest.mark.parametrize(
    "change",
    [
        {"tool_choice": "required"},
        {"tools": [ADD], "tool_choice": {"type": "function", "function": {"name": "other"}}},
        {"tools": [ADD], "tool_choice": "always"},
        {"response_format": {"type": "xml"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "wizard"}}}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "#/none"}}}},
    ],
)
def test_what_cannot_be_followed_is_refused(client: OpenAI, change: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(**asked(), **change)
