"""``agentmem.compat.mem0`` against mem0 itself, which ``make test-mem0`` lays over the environment.

Where mem0 would ask a model to extract memories, it is told not to (``infer=False``); it embeds as agentmem does.
"""

from __future__ import annotations

import inspect
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentmem import MemoryLLM
from agentmem.compat.mem0 import Memory

CALLS = ["add", "search", "get", "get_all", "update", "delete", "delete_all", "history", "reset"]
TEXTS = ["Ana likes green tea.", "Ana drives a red car.", "Ana's sister plays the cello.", "Ana is allergic to nuts."]
USERS, AGENTS, RUNS = ["ana", "bob"], [None, "cook", "driver"], [None, "r1", "r2"]
TOPICS = ["tea", "car", None]


class Embedding:
    """mem0's embedder, over agentmem's."""

    def __init__(self, llm: MemoryLLM):
        self.llm = llm

    def embed(self, text: str, memory_action: str | None = None) -> list[float]:
        return [float(number) for number in self.llm.embed([text])[0][0]]


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MemoryLLM]:
    with MemoryLLM(store=tmp_path_factory.mktemp("store") / "memory.db") as opened:
        yield opened


@pytest.fixture(scope="module")
def theirs(llm: MemoryLLM, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("mem0")
    os.environ |= {"MEM0_TELEMETRY": "False", "MEM0_DIR": str(folder), "POSTHOG_DISABLED": "1"}
    import mem0

    dim = len(llm.embed(["a"])[0][0])
    config = {
        "vector_store": {"provider": "qdrant", "config": {"path": str(folder / "q"), "embedding_model_dims": dim}},
        "llm": {"provider": "openai", "config": {"api_key": "none"}},
        "embedder": {"provider": "openai", "config": {"api_key": "none", "embedding_dims": dim}},
        "history_db_path": str(folder / "history.db"),
    }
    with mem0.Memory.from_config(config) as memory:
        memory.embedding_model = Embedding(llm)
        yield memory
        memory.vector_store.client.close()


@pytest.fixture(scope="module")
def ours(llm: MemoryLLM) -> Memory:
    return Memory(llm)


@pytest.mark.parametrize("call", CALLS)
def test_calls_take_what_mem0_takes(theirs: Any, call: str) -> None:
    """The same parameters, in the same order, of the same kinds, with the same defaults."""

    def shape(method: Any) -> list[tuple[Any, ...]]:
        found = inspect.signature(method).parameters.values()
        return [
            (one.name, one.kind, type(one.default) if "object" in repr(one.default) else one.default) for one in found
        ]

    assert shape(getattr(Memory, call)) == shape(getattr(type(theirs), call))


def test_results_have_the_shapes_of_mem0s(theirs: Any, ours: Memory) -> None:
    def told(memory: Any) -> list[Any]:
        said = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": TEXTS[0], "name": "Ana"},
            {"role": "assistant", "content": "Noted."},
        ]
        more = {"user_id": "eve", "agent_id": "cook", "run_id": "r1", "metadata": {"topic": "tea", "user_id": "bob"}}
        added = memory.add(said, infer=False, **more)
        first, second = (one["id"] for one in added["results"])
        filters = {"user_id": "eve", "topic": "tea"}
        results = [
            added,
            memory.get(first),
            memory.get("8f0f8b3e-0000-4000-8000-000000000000"),
            memory.get_all(filters=filters)["results"],
            memory.search("tea", filters=filters)["results"],
            memory.update(first, text=TEXTS[1], metadata={"n": 1}),
            memory.get(first),
            memory.history(first),
            memory.delete(second),
            memory.get(second),
            memory.history(second),
            memory.delete_all(user_id="eve"),
            memory.get_all(filters={"user_id": "eve"}),
        ]
        names = {first: "first", second: "second"}
        return [plain(one, names) for one in results]

    assert told(ours) == told(theirs)


def plain(value: Any, names: dict[str, str]) -> Any:
    """A result without what differs each time, or on purpose: times, scores, the texts of a history."""
    if isinstance(value, list):
        return sorted((plain(one, names) for one in value), key=repr)
    if not isinstance(value, dict):
        return names.get(value, value) if isinstance(value, str) else value
    found = {key: plain(one, names) for key, one in value.items()}
    for key in ("created_at", "updated_at", "score"):
        found |= {key: type(found[key])} if key in found else {}
    if "event" in found and "is_deleted" in found:
        found |= {"id": str, "old_memory": "", "new_memory": "", "actor_id": "", "role": ""}
    return found


OPERATORS = [
    {"topic": {"ne": "tea"}},
    {"n": {"gt": 1}},
    {"n": {"gte": 1, "lt": 3}},
    {"topic": {"in": ["tea", "car"]}},
    {"topic": {"contains": "tea"}},
    {"OR": [{"topic": "car"}, {"n": 3}]},
    {"AND": [{"topic": "tea"}, {"n": {"lte": 2}}]},
    {"NOT": [{"topic": "tea"}]},
    {"role": "user"},
    {},
]


def test_random_operations_leave_and_find_the_same(theirs: Any, ours: Memory) -> None:
    dice = random.Random(7)
    ids: list[tuple[str, str]] = []
    found = 0
    for number in range(150):
        kind = dice.random()
        whose = {"user_id": dice.choice(USERS), "agent_id": dice.choice(AGENTS), "run_id": dice.choice(RUNS)}
        whose = {key: value for key, value in whose.items() if value}
        if kind < 0.5:
            meta = {key: value for key, value in (("topic", dice.choice(TOPICS)), ("n", dice.randint(0, 3))) if value}
            said = f"{dice.choice(TEXTS)} ({number})"
            pair = [m.add(said, metadata=meta, infer=False, **whose)["results"][0]["id"] for m in (ours, theirs)]
            ids.append((pair[0], pair[1]))
        elif kind < 0.6 and ids:
            for memory, id in zip((ours, theirs), dice.choice(ids), strict=True):
                if memory.get(id) is not None:
                    memory.update(id, text=f"Ana moved. ({number})", metadata={"n": 2})
        elif kind < 0.7 and ids:
            for memory, id in zip((ours, theirs), ids.pop(dice.randrange(len(ids))), strict=True):
                if memory.get(id) is not None:
                    memory.delete(id)
        elif kind < 0.74:
            for memory in (ours, theirs):
                memory.delete_all(**whose)
        else:
            mine, other = (texts(memory.get_all(filters=whose, top_k=500)) for memory in (ours, theirs))
            assert mine == other, (number, whose)
            filters = whose | dice.choice(OPERATORS)
            asked = {"filters": filters, "top_k": 500, "threshold": 0.0}
            mine, other = (texts(memory.search("What does Ana like?", **asked)) for memory in (ours, theirs))
            assert mine == other, (number, filters)
            found += len(mine)
    assert found > 50  # there was something to compare


def texts(results: dict[str, Any]) -> list[str]:
    return sorted(one["memory"] for one in results["results"])


def test_what_mem0_refuses_is_refused(theirs: Any, ours: Memory) -> None:
    from mem0.exceptions import ValidationError

    ana = {"user_id": "ana"}
    for memory in (ours, theirs):
        for call in (
            lambda m: m.add("a"),
            lambda m: m.add("a", user_id=" "),
            lambda m: m.add("a", user_id="ana", timestamp=1),
            lambda m: m.add("a", user_id="ana", expiration_date="soon"),
            lambda m: m.search("a"),
            lambda m: m.search(" ", filters=ana),
            lambda m: m.search("a", user_id="ana"),
            lambda m: m.search("a", filters=ana, threshold=2),
            lambda m: m.search("a", filters=ana, top_k=-1),
            lambda m: m.search("a", filters=ana | {"AND": {"n": 1}}),
            lambda m: m.search("a", filters=ana, reference_date="2026-01-01"),
            lambda m: m.get_all(filters={"topic": "tea"}),
            lambda m: m.get_all(filters=ana, user_id="ana"),
            lambda m: m.update("8f0f8b3e-0000-4000-8000-000000000000", text="a"),
            lambda m: m.update("8f0f8b3e-0000-4000-8000-000000000000"),
            lambda m: m.delete("8f0f8b3e-0000-4000-8000-000000000000"),
            lambda m: m.delete_all(),
        ):
            with pytest.raises((ValueError, ValidationError)):
                call(memory)


def test_reset_forgets_everything(theirs: Any, ours: Memory, llm: MemoryLLM, tmp_path: Path) -> None:
    for memory in (ours, theirs):
        memory.add("a", user_id="ana", infer=False)
        assert memory.reset() is None
    assert ours.get_all(filters={"user_id": "ana"}) == {"results": []}
