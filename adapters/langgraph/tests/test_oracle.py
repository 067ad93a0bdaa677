"""1,000 random batches: the same answers as LangGraph's own ``InMemoryStore``."""

from __future__ import annotations

import random
from typing import Any

from langgraph.store.base import GetOp, Item, ListNamespacesOp, MatchCondition, Op, PutOp, SearchOp
from langgraph.store.memory import InMemoryStore

from langgraph_agentmem_kv import AgentMemStore

BATCHES = 1000
NAMESPACES = [
    ("mem", "ana"),
    ("mem", "an"),
    ("mem", "ana", "work"),
    ("mem",),
    ("docs",),
    ("docs", "ana"),
    ("mem ", "é/%"),
]
KEYS = ["a", "b", "ana", "work", "c.d"]
WORDS = ["green tea", "a red car", "the cello", "peanuts", "Lisbon in spring"]
FILTERS: list[Any] = [
    None,
    {},
    {"n": 3},
    {"n": {"$gt": 2}},
    {"n": {"$gte": 1, "$lt": 4}},
    {"n": {"$ne": 0, "$lte": 4}},
    {"n": {"$eq": 2.0}},
    {"d": {"x": 1}},
    {"d": {"x": {"$gt": 0}}},
    {"d": {"y": None}},
    {"tags": ["one", {"$ne": "two"}]},
    {"tags": []},
    {"text": "the cello", "n": {"$gt": 1}},
    {"absent": None},
]
PATHS = [(), ("mem",), ("*",), ("*", "ana"), ("ana",), ("mem", "*", "work"), ("*", "*", "*", "*")]


def value(dice: random.Random) -> dict[str, Any]:
    tags = dice.choice([[], ["one", "two"], ["one", "three"]])
    return {"text": dice.choice(WORDS), "n": dice.randint(0, 5), "d": {"x": dice.randint(0, 2)}, "tags": tags}


def operation(dice: random.Random) -> Op:
    namespace, key = dice.choice(NAMESPACES), dice.choice(KEYS)
    kind = dice.randint(0, 9)
    if kind < 4:
        return PutOp(namespace, key, value(dice), index=dice.choice([False, False, False, ["text"], None]))
    if kind == 4:
        return PutOp(namespace, key, None)
    if kind < 7:
        return GetOp(namespace, key)
    if kind < 9:
        prefix = namespace[: dice.randint(0, len(namespace))]
        query = dice.choice([None, None, "which tea"])
        return SearchOp(prefix, filter=dice.choice(FILTERS), query=query, limit=dice.choice([0, 1000, 1000]))
    conditions = [
        MatchCondition(dice.choice(["prefix", "suffix"]), dice.choice(PATHS)) for _ in range(dice.randint(0, 2))
    ]
    return ListNamespacesOp(
        tuple(conditions), dice.choice([None, 1, 2]), limit=dice.choice([2, 100]), offset=dice.choice([0, 1])
    )


def plain(result: Any) -> Any:
    """What both must agree on; items of a search are in each store's own order."""
    if isinstance(result, Item):
        return repr((result.namespace, result.key, result.value))
    if isinstance(result, list) and result and isinstance(result[0], Item):
        return sorted(map(plain, result))
    return result


def test_random_batches_are_answered_as_by_langgraphs_own_store(store: AgentMemStore) -> None:
    dice, oracle = random.Random(0), InMemoryStore()
    answered: dict[type, int] = {}
    for number in range(BATCHES):
        operations = [operation(dice) for _ in range(dice.randint(1, 4))]
        # What the oracle was only asked for stays in it as an empty namespace: those go, and listings come first.
        operations.sort(key=lambda op: not isinstance(op, ListNamespacesOp))
        for empty in [namespace for namespace, items in oracle._data.items() if not items]:
            del oracle._data[empty]
        expected, found = oracle.batch(operations), store.batch(operations)
        for op, one, other in zip(operations, found, expected, strict=True):
            assert plain(one) == plain(other), (number, op)
            answered[type(op)] = answered.get(type(op), 0) + bool(one)
    assert min(answered[kind] for kind in (GetOp, SearchOp, ListNamespacesOp)) > 50  # there was something to compare
