"""Filters by what callers wrote: values of meta, and tags that are paths. Against brute force, on both engines."""

from __future__ import annotations

from typing import Any

import pytest
import servers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from store_world import ADA, BOB, embed, new

from agentmem.errors import InvalidInput
from agentmem.store import ScopedMemories

AWKWARD = ["", "a", "A", "a.b", 'a"b', "a'b", "a\\b", "$", "$.a", "[0]", "é", "e\u0301", "🙂", "%", "_", "\n", "key"]
KEYS = st.sampled_from(AWKWARD)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from([0, 1, 2**53, 2**53 + 1]),
    st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False),
    st.sampled_from([1.0, 0.5, 0.1, -0.0]),
    st.sampled_from([*AWKWARD, "1", "true", "null", "1.0"]),
)
METAS = st.dictionaries(KEYS, st.one_of(SCALARS, st.lists(SCALARS, max_size=2), st.dictionaries(KEYS, SCALARS)))
FILTERS = st.dictionaries(KEYS, SCALARS, max_size=2)
TAGS = ["a", "A", "ab", "a/b", "a/b/c", "a/bc", "b", "b/a", "é/x", "%/x", "a_/x"]
PATHS = st.lists(st.sampled_from(TAGS), max_size=3)


def same(stored: Any, wanted: Any) -> bool:
    """Compared as JSON is: no bool is a number, and numbers are compared by value."""
    if isinstance(stored, bool) or isinstance(wanted, bool):
        return stored is wanted
    numbers = isinstance(stored, int | float) and isinstance(wanted, int | float)
    return (numbers or type(stored) is type(wanted)) and bool(stored == wanted)


def compare(backend: str, metas: list[dict[str, Any]], tags: list[list[str]], wanted: list[dict[str, Any]]) -> None:
    with servers.fresh(backend) as store:
        store.scope(BOB).add([new("hello from someone else", meta={"a": 1}, tags=("a/b",))])
        ada = store.scope(ADA)
        ada.add([new(f"hello {i}", id=str(i), meta=meta, tags=tuple(tags[i])) for i, meta in enumerate(metas)])
        for meta in [*wanted, *({k: v} for one in metas for k, v in one.items() if not isinstance(v, list | dict))]:
            expected = {
                str(i) for i, one in enumerate(metas) if all(k in one and same(one[k], v) for k, v in meta.items())
            }
            assert {m.id for m in ada.list(meta=meta)} == expected, meta
            assert ada.count(meta=meta) == len(expected)
            hits = ada.search("hello", embed("hello"), threshold=None, top_k=99, meta=meta)
            assert {hit.memory.id for hit in hits} == expected
        for path in ["a", "a/b", "A", "ab", "a/b/c", "é", "%", "a_", "c"]:
            expected = {
                str(i)
                for i in range(len(metas))
                if any(tag.split("/")[: path.count("/") + 1] == path.split("/") for tag in tags[i])
            }
            assert {m.id for m in ada.list(under=path)} == expected, path
            assert ada.count(under=path) == len(expected)


@settings(max_examples=15)
@example([{"é": "é", 'a"b': 1}, {"é": True}, {"é": None, "a": 1.0}, {}], [{"é": None}, {"a": 1}])
@given(st.lists(METAS, min_size=1, max_size=5), st.lists(FILTERS, max_size=4))
def test_meta_is_compared_by_key_type_and_value(metas: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    compare("sqlite", metas, [[]] * len(metas), wanted)


@settings(max_examples=3)
@example([{"é": "é", 'a"b': 1}, {"é": True}, {"é": None, "a": 1.0}, {}], [{"é": None}, {"a": 1}])
@given(st.lists(METAS, min_size=4, max_size=8), st.lists(FILTERS, min_size=4, max_size=6))
def test_meta_is_compared_alike_on_postgres(metas: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    compare("postgresql", metas, [[]] * len(metas), wanted)


@settings(max_examples=15)
@given(st.lists(PATHS, min_size=1, max_size=6))
def test_paths_are_compared_by_whole_segments(tags: list[list[str]]) -> None:
    compare("sqlite", [{}] * len(tags), tags, [])


@settings(max_examples=2)
@given(st.lists(PATHS, min_size=4, max_size=6))
def test_paths_are_compared_alike_on_postgres(tags: list[list[str]]) -> None:
    compare("postgresql", [{}] * len(tags), tags, [])


def test_filters_hold_together(ada: ScopedMemories) -> None:
    ada.add([new("one", tags=("work/tax",), meta={"year": 2025, "paid": True})])
    ada.add([new("two", tags=("work/tax",), meta={"year": 2026, "paid": True})])
    ada.add([new("three", tags=("home",), meta={"year": 2026, "paid": True})])
    assert [m.text for m in ada.list(under="work", meta={"year": 2026, "paid": True})] == ["two"]
    assert ada.count(under="work", meta={"year": 2026, "paid": False}) == 0
    assert [m.text for m in ada.list(meta={}, under="home")] == ["three"]


@pytest.mark.parametrize(
    "how",
    [
        {"meta": "year"},
        {"meta": [("year", 2026)]},
        {"meta": {1: 2}},
        {"meta": {"year": [2026]}},
        {"meta": {"year": {"is": 2026}}},
        {"meta": {"year": float("nan")}},
        {"meta": {"year": 2**63}},
        {"meta": {"year": object()}},
        {"meta": {"a": "\x00"}},
        {"meta": {"a": "x" * 70_000}},
        {"under": ""},
        {"under": 3},
        {"under": ["a"]},
        {"under": " a"},
    ],
)
def test_bad_filters_are_refused(ada: ScopedMemories, how: dict[str, Any]) -> None:
    ada.add([new("one", meta={"year": 2026})])
    for call in (ada.list, ada.count):
        with pytest.raises(InvalidInput):
            call(**how)
    with pytest.raises(InvalidInput):
        ada.search("one", **how)
