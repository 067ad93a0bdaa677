"""``/v1/chat/completions`` and its neighbours, through OpenAI's own client against a server on a real port."""

from __future__ import annotations

import math
import time
from functools import partial
from typing import Any

import openai
import pytest
from openai import OpenAI
from server_world import Running

from agentmem import MemoryLLM, Scope

MODEL = "bundled"


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


@pytest.fixture
def client(server: Running) -> OpenAI:
    return server.openai()


def test_a_fact_is_remembered_across_dialogues(client: OpenAI) -> None:
    client.chat.completions.create(model=MODEL, messages=[user("My dog is called Biscuit.")], user="across")
    reply = client.chat.completions.create(model=MODEL, messages=[user("What is my dog called?")], user="across")
    assert reply.choices[0].message.content == "Your dog is called Biscuit."
    assert reply.choices[0].finish_reason == "stop"
    extension = reply.model_extra["agentmem"]
    assert extension["user"] == "across"
    assert "Biscuit" in extension["memories"][0]["text"]
    assert 0 < extension["memories"][0]["attention"] < 1
    usage = reply.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert 0 < usage.prompt_tokens_details.cached_tokens < usage.prompt_tokens
    other = client.chat.completions.create(model=MODEL, messages=[user("What is my dog called?")], user="stranger")
    assert "Biscuit" not in other.choices[0].message.content


def test_tokens_are_told_where_they_are_asked_for(client: OpenAI) -> None:
    client.chat.completions.create(model=MODEL, messages=[user("My dog is called Biscuit.")], user="tokens")
    ask = partial(client.chat.completions.create, model=MODEL, messages=[user("What is my dog called?")], user="tokens")
    assert ask().model_extra["agentmem"]["tokens"] is None
    reply = ask(extra_body={"agentmem": {"tokens": True}})
    text, extension = reply.choices[0].message.content, reply.model_extra["agentmem"]
    tokens = extension["tokens"]
    assert "".join(text[token["start"] : token["end"]] for token in tokens) == text
    assert len(tokens) == reply.usage.completion_tokens
    assert all(0 < sum(token["attention"].values()) <= 1 for token in tokens)
    for place, memory in enumerate(extension["memories"]):
        mean = sum(token["attention"][str(place)] for token in tokens) / len(tokens)
        assert memory["attention"] == pytest.approx(mean, abs=1e-5)
    chunks = list(ask(extra_body={"agentmem": {"tokens": True}}, stream=True))
    assert chunks[-1].model_extra["agentmem"]["tokens"]


def test_a_stream_has_the_text_the_usage_and_what_was_read(client: OpenAI) -> None:
    client.chat.completions.create(model=MODEL, messages=[user("My dog is called Biscuit.")], user="streamed")
    with client.chat.completions.create(
        model=MODEL,
        messages=[user("What is my dog called?")],
        user="streamed",
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == "Your dog is called Biscuit."
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == ["stop"]
    assert chunks[-1].usage.completion_tokens > 0
    assert "Biscuit" in chunks[-2].model_extra["agentmem"]["memories"][0]["text"]
    assert len({chunk.id for chunk in chunks}) == 1


def test_pieces_arrive_while_the_answer_is_made(client: OpenAI) -> None:
    arrived = []
    for chunk in client.chat.completions.create(
        model=MODEL, messages=[user("Hello!")], user="live", stream=True, max_tokens=60, temperature=1.5, seed=1
    ):
        if chunk.choices[0].delta.content:
            arrived.append(time.monotonic())
    assert len(arrived) > 2
    assert arrived[-1] - arrived[0] > 0.005


def test_a_client_that_resends_everything_duplicates_nothing(client: OpenAI, llm: MemoryLLM) -> None:
    said = [user("My dog is called Biscuit.")]
    for question in ("My cat is called Luna.", "What is my dog called?", "What is my cat called?"):
        reply = client.chat.completions.create(model=MODEL, messages=said, user="resend")
        said += [assistant(reply.choices[0].message.content), user(question)]
    reply = client.chat.completions.create(model=MODEL, messages=said, user="resend")
    assert reply.choices[0].message.content == "Your cat is called Luna."
    memories = llm.store.scope(Scope(user="resend")).list(sort="created_at")
    assert [memory.text for memory in memories] == [
        *(message["content"] for message in said),
        "Your cat is called Luna.",
    ]
    assert len({memory.scope.session for memory in memories}) == 1


def test_options_reach_the_model(client: OpenAI) -> None:
    def say(**options: Any) -> Any:
        asked = {"model": MODEL, "messages": [user("What is my dog called?")], "user": "options"}
        return client.chat.completions.create(**asked, **options).choices[0]

    plain = say().message.content
    assert say(max_tokens=2).finish_reason == "length"
    assert say(stop=[plain[5:8]]).message.content == plain[:5].strip()
    assert say(temperature=1.9, seed=7, max_tokens=12) == say(temperature=1.9, seed=7, max_tokens=12)
    assert say(temperature=1.9, seed=7, top_p=1e-9).message.content == plain
    assert say(max_completion_tokens=1_000_000, n=1).message.content == plain


def test_messages_of_every_form(client: OpenAI) -> None:
    reply = client.chat.completions.create(
        model=MODEL,
        user="forms",
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "system", "content": [{"type": "text", "text": "Be kind."}]},
            {"role": "user", "content": [{"type": "text", "text": "My dog is called Biscuit."}]},
            {"role": "assistant", "content": ""},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}],
            },
            {"role": "tool", "tool_call_id": "c1", "content": ""},
            user("What is my dog called?"),
        ],
    )
    assert reply.choices[0].message.content


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages"),
        ({"messages": [user("")]}, None),
        ({"messages": [user("a\x00b")]}, None),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"seed": 2**70}, "seed"),
        ({"n": 2}, "n"),
        ({"stop": [""]}, None),
        ({"logprobs": True}, "logprobs"),
        ({"presence_penalty": 1}, "presence_penalty"),
        ({"user": "a\u200bb"}, "user"),
    ],
)
def test_bad_requests_are_told_what_is_wrong(client: OpenAI, change: dict[str, Any], param: str | None) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{"model": MODEL, "messages": [user("Hello!")], **change})
    body = caught.value.response.json()["error"]
    assert body["type"] == "invalid_request_error"
    assert body["message"]
    assert param is None or (body["param"] or "").startswith(param)


def test_a_model_that_is_not_there(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-4o", messages=[user("Hello!")])
    assert caught.value.code == "model_not_found"
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("some/other")


def test_embeddings_are_those_of_recall(client: OpenAI, server: Running, llm: MemoryLLM) -> None:
    texts = ["My dog is called Biscuit.", "Quite another thing"]
    reply = client.embeddings.create(model=MODEL, input=texts, encoding_format="float")
    vectors, tokens = llm.embed(texts)
    assert reply.usage.total_tokens == tokens
    for item, vector in zip(reply.data, vectors, strict=True):
        assert item.embedding == pytest.approx(vector.tolist(), abs=1e-6)
        assert math.isclose(sum(x * x for x in item.embedding), 1.0, abs_tol=1e-4)
    # The client's own default is base64, which its strict mode does not know.
    default = OpenAI(base_url=f"{server.url}/v1", api_key="none").embeddings.create(model=MODEL, input=texts[0])
    assert default.data[0].embedding == pytest.approx(vectors[0].tolist(), abs=1e-6)
    for bad in ({"input": []}, {"input": ""}, {"input": [[1, 2]]}, {"input": "x", "dimensions": 7}):
        with pytest.raises(openai.BadRequestError):
            client.embeddings.create(**{"model": MODEL, "encoding_format": "float", **bad})
