"""The retriever, the writer, what they share, and that nothing is reported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from haystack import Pipeline
from haystack.components.joiners import ListJoiner
from haystack.dataclasses import ChatMessage

from agentmem import InvalidInput, MemoryLLM

from haystack_integrations.components.generators.agentmem_kv import AgentMemChatGenerator
from haystack_integrations.components.retrievers.agentmem_kv import AgentMemMemoryRetriever
from haystack_integrations.components.writers.agentmem_kv import AgentMemMemoryWriter
from haystack_integrations.memory_stores.agentmem_kv import AgentMemMemoryStore

TOLD = "My dog is called Biscuit."


def dialogue(*texts: str) -> list[ChatMessage]:
    speakers = [ChatMessage.from_user, ChatMessage.from_assistant]
    return [speakers[at % 2](text) for at, text in enumerate(texts)]


def found(retriever: AgentMemMemoryRetriever, query: str, **more: Any) -> list[str | None]:
    return [memory.text for memory in retriever.run(query, **more)["memories"]]


def test_what_was_written_is_retrieved_by_its_user(memory_store: AgentMemMemoryStore) -> None:
    writer, retriever = AgentMemMemoryWriter(memory_store), AgentMemMemoryRetriever(memory_store, top_k=1)
    said = [ChatMessage.from_system("Be brief."), *dialogue(TOLD, "I see.")]
    assert writer.run(said, user_id="ada") == {"memories_written": 2}
    (memory,) = retriever.run("What is my dog called?", user_id="ada")["memories"]
    assert memory.text == TOLD
    assert memory.is_from("system")
    assert memory.meta["role"] == "user"
    assert memory_store.llm.memories(user="ada").get(memory.meta["memory_id"]).text == TOLD
    assert found(retriever, "dog", user_id="bob") == []
    assert found(retriever, "dog", user_id="ada", agent_id="other") == []


def test_a_dialogue_that_has_grown_is_written_from_where_it_has(memory_store: AgentMemMemoryStore) -> None:
    writer = AgentMemMemoryWriter(memory_store)
    assert writer.run(dialogue(TOLD, "I see."), user_id="ada", session_id="monday")["memories_written"] == 2
    grown = dialogue(TOLD, "I see.", TOLD)
    assert writer.run(grown, user_id="ada", session_id="monday")["memories_written"] == 1
    assert writer.run(grown, user_id="ada", session_id="monday")["memories_written"] == 0
    assert writer.run(grown, user_id="ada", session_id="tuesday")["memories_written"] == 3
    assert len(memory_store.llm.memories(user="ada").list(session="monday")) == 3


def test_what_tools_and_systems_say_is_not_written(memory_store: AgentMemMemoryStore) -> None:
    from haystack.dataclasses import ToolCall

    call = ToolCall("weather", {"city": "Lisbon"}, id="1")
    said = [
        ChatMessage.from_system("You remember."),
        ChatMessage.from_user("How is the weather?"),
        ChatMessage.from_assistant(tool_calls=[call]),
        ChatMessage.from_tool("It rains.", origin=call),
        ChatMessage.from_assistant("It rains in Lisbon."),
    ]
    assert AgentMemMemoryWriter(memory_store).run(said, user_id="ada")["memories_written"] == 2


def test_filters_and_thresholds(memory_store: AgentMemMemoryStore) -> None:
    memories = memory_store.llm.memories(user="ada")
    memories.add("The tax form is due in May.", id="tax", tags=["work/tax"], meta={"year": 2026})
    memories.add("The tax form was due in June.", tags=["work/tax"], meta={"year": 2025})
    retriever = AgentMemMemoryRetriever(memory_store, filters={"under": "work"})
    assert len(found(retriever, "tax form", user_id="ada")) == 2
    assert len(found(retriever, "tax form", user_id="ada", top_k=1)) == 1
    (one,) = retriever.run("tax form", user_id="ada", filters={"meta": {"year": 2026}})["memories"]
    assert (one.meta["memory_id"], one.meta["year"]) == ("tax", 2026)
    assert found(AgentMemMemoryRetriever(memory_store, threshold=1000.0), "tax form", user_id="ada") == []
    with pytest.raises(InvalidInput):
        retriever.run("", user_id="ada")
    with pytest.raises(InvalidInput):
        retriever.run("tax", user_id="")


def build(store: AgentMemMemoryStore) -> Pipeline:
    """Memory for a generator that has none of its own: retrieve, answer, write."""
    pipeline = Pipeline()
    pipeline.add_component("retriever", AgentMemMemoryRetriever(store, threshold=1.0))
    pipeline.add_component("prompt", ListJoiner(list[ChatMessage]))
    pipeline.add_component("llm", AgentMemChatGenerator(store, user_id="nobody", generation_kwargs={"remember": False}))
    pipeline.add_component("said", ListJoiner(list[ChatMessage]))
    pipeline.add_component("writer", AgentMemMemoryWriter(store))
    pipeline.connect("retriever.memories", "prompt.values")
    pipeline.connect("prompt.values", "llm.messages")
    pipeline.connect("prompt.values", "said.values")
    pipeline.connect("llm.replies", "said.values")
    pipeline.connect("said.values", "writer.messages")
    return pipeline


def test_a_pipeline_around_a_model_without_memory_is_saved_and_goes_on(memory_store: AgentMemMemoryStore) -> None:
    pipeline = build(memory_store)
    user = {"user_id": "ada"}

    def run(pipeline: Pipeline, text: str) -> Any:
        inputs = {
            "retriever": {"query": text, **user},
            "prompt": {"values": [ChatMessage.from_user(text)]},
            "writer": user,
        }
        return pipeline.run(inputs, include_outputs_from={"retriever"})

    assert run(pipeline, TOLD)["writer"] == {"memories_written": 2}
    text, saved = pipeline.dumps(), pipeline.to_dict()
    pipeline.close()
    loaded = Pipeline.loads(text)
    assert loaded.to_dict()["components"] == saved["components"]
    assert TOLD in [memory.text for memory in run(loaded, "What is my dog called?")["retriever"]["memories"]]
    loaded.close()


def test_the_model_is_opened_once_and_closed_by_the_last(tmp_path: Path) -> None:
    path = str(tmp_path / "memory.db")
    one, other = AgentMemMemoryStore(path), AgentMemMemoryStore.from_dict(AgentMemMemoryStore(path).to_dict())
    assert one.llm is other.llm
    assert AgentMemMemoryStore(path, options={"window_tokens": 100}).llm is not one.llm
    one.close()
    one.close()
    assert other.llm.memories(user="ada").add(TOLD)
    llm = other.llm
    other.close()
    with pytest.raises(Exception, match="closed"):
        llm.memories(user="ada").add("More.")
    assert [m.text for m in one.llm.memories(user="ada").list()] == [TOLD]
    one.close()


def test_an_open_model_is_used_but_neither_closed_nor_saved(tmp_path: Path) -> None:
    with MemoryLLM(store=tmp_path / "memory.db") as llm:
        writer = AgentMemMemoryWriter(AgentMemMemoryStore.of(llm))
        writer.run(dialogue(TOLD), user_id="ada")
        writer.close()
        assert len(llm.memories(user="ada")) == 1
        with pytest.raises(InvalidInput, match="cannot be saved"):
            writer.to_dict()


@pytest.mark.parametrize(("said", "off"), [(None, True), ("False", True), ("True", False)])
@pytest.mark.parametrize("first", ["haystack", "haystack_integrations.memory_stores.agentmem_kv"])
def test_nothing_is_reported_unless_it_was_asked_for(tmp_path: Path, said: str | None, off: bool, first: str) -> None:
    """In a process of its own, without a run: where reports are on, a run would try to send one."""
    name = "HAYSTACK_TELEMETRY_ENABLED"
    environment = {key: value for key, value in os.environ.items() if key != name} | {"HOME": str(tmp_path)}
    code = (
        f"import {first}, haystack.telemetry._telemetry as t\n"
        "import haystack_integrations.components.writers.agentmem_kv\n"
        "print(t.telemetry is None)"
    )
    environment |= {} if said is None else {name: said}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(off)
