"""Search: legs against brute force, fusion, threshold, filters, queries of any shape."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
import servers
from hypothesis import given, settings
from hypothesis import strategies as st
from store_world import ADA, BOB, DIM, attach, embed, new

from agentmem.errors import InvalidInput
from agentmem.records import Hit, Role, Scope
from agentmem.store import NewMemory, ScopedMemories, Store
from agentmem.store.search import MAX_WORDS, POOL, fuse, query_words

FACTS = [
    "My dog is called Biscuit.",
    "We moved to Lisbon in spring.",
    "The dentist appointment is on Tuesday.",
    "My sister plays the cello.",
    "I am allergic to peanuts.",
    "The car needs new brakes.",
    "Our favourite film is Amelie.",
    "Grandma's soup has seven spices.",
]


@pytest.fixture
def facts(ada: ScopedMemories) -> ScopedMemories:
    ada.add([new(text, id=f"fact{number}") for number, text in enumerate(FACTS)])
    return ada


def ids(hits: list[Hit]) -> list[str]:
    return [hit.memory.id for hit in hits]


@pytest.mark.parametrize(
    ("query", "best"),
    [
        ("What is my dog called?", "fact0"),
        ("where did we move", "fact1"),
        ("dentists", "fact2"),
        ("CELLO!", "fact3"),
        ("peanut allergy", "fact4"),
        ('"brakes" OR (NEAR', "fact5"),
        ("Amélie", "fact6"),
    ],
)
def test_a_question_finds_its_fact(facts: ScopedMemories, query: str, best: str) -> None:
    assert ids(facts.search(query, embed(query)))[0] == best
    assert ids(facts.search(query))[0] == best


def test_an_unrelated_question_recalls_nothing(facts: ScopedMemories) -> None:
    for query in ("What is the capital of Mongolia?", "integrate x squared", "", "???"):
        assert facts.search(query, embed(query)) == []
        assert facts.search(query) == []


@pytest.mark.parametrize("count", [1, 2, 3])
def test_in_a_young_store_the_only_match_in_words_is_found(ada: ScopedMemories, count: int) -> None:
    ada.add([new(text) for text in FACTS[:count]])
    assert [hit.memory.text for hit in ada.search("dog?", embed("something else"))] == FACTS[:1]
    assert ada.search("zebra", embed("zebra")) == []


def test_explain_shows_every_score(facts: ScopedMemories) -> None:
    query = "dog Biscuit"
    hits = facts.search(query, embed(query), threshold=None, explain=True, top_k=20)
    assert len(hits) == len(FACTS)
    for hit in hits:
        why = hit.explain
        assert why is not None
        assert hit.score == pytest.approx(why.lexical_z + why.dense_z)
        assert why.dense == pytest.approx(float(embed(query) @ embed(hit.memory.text)), abs=1e-5)
        assert why.threshold is None
    assert hits[0].explain is not None
    assert hits[0].explain.lexical is not None
    assert facts.search(query)[0].explain is None


def test_threshold_top_k_and_exclude(facts: ScopedMemories) -> None:
    query = "dog film soup"
    hits = facts.search(query, embed(query), threshold=None, top_k=20)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert ids(facts.search(query, embed(query), threshold=None, top_k=2)) == ids(hits)[:2]
    assert facts.search(query, top_k=0) == []
    middle = hits[1].score
    assert ids(facts.search(query, embed(query), threshold=middle, top_k=20)) == ids(hits)[:2]
    without = facts.search(query, embed(query), threshold=None, top_k=20, exclude=[hits[0].memory.id, "unknown"])
    assert set(ids(without)) == set(ids(hits)[1:])


def test_a_turn_is_excluded_with_all_its_chunks_and_only_in_its_scope(store: Store) -> None:
    for scope in (ADA, BOB):
        handle = store.scope(scope)
        handle.add([new(f"soup {number}", "said", id=f"said-{number}", chunk_no=number) for number in range(3)])
        handle.add([new("soup of others", "heard", id="heard-0")])
    ada = store.scope(ADA)
    hits = ada.search("soup", embed("soup"), threshold=None, exclude=["said", "unknown"])
    assert ids(hits) == ["heard-0"]
    assert set(ids(ada.search("soup", embed("soup"), threshold=None, exclude=["said-1", "heard"]))) == {
        "said-0",
        "said-2",
    }


@pytest.mark.sqlite  # whose vec0 has such a limit
def test_more_exclusions_than_the_index_returns(ada: ScopedMemories) -> None:
    ada.add([new(f"apple {number}", id=str(number)) for number in range(4200)])
    kept = {"7", "4100"}
    hits = ada.search(
        "apple", embed("apple"), threshold=None, exclude=[str(n) for n in range(4200) if str(n) not in kept]
    )
    assert set(ids(hits)) == kept


def test_neighbouring_turns_are_part_of_the_key_but_weigh_less(ada: ScopedMemories) -> None:
    ada.add([new("Where did you spend the holidays?", "t1", session="s")])
    ada.add([new("In the Dolomites, it rained.", "t2", session="s", role=Role.ASSISTANT)])
    ada.add([new("What a pity.", "t3", session="s")])
    ada.add([new("Holidays are overrated.", "u1", session="other")])
    found = [hit.memory.turn for hit in ada.search("holidays", threshold=None)]
    assert set(found) == {"t1", "t2", "u1"}
    assert found[-1] == "t2"
    assert {hit.memory.turn for hit in ada.search("Dolomites", threshold=None)} == {"t1", "t2", "t3"}


def test_memories_without_a_session_have_no_neighbours(ada: ScopedMemories) -> None:
    ada.add([new("a note about otters"), new("a note about taxes")])
    assert [hit.memory.text for hit in ada.search("otters", threshold=None)] == ["a note about otters"]


def test_neighbours_are_by_date_whatever_the_order_of_writing(ada: ScopedMemories, store: Store) -> None:
    start = datetime(2024, 1, 1, tzinfo=UTC)
    for day, word in [(0, "alpha"), (2, "gamma"), (1, "beta")]:
        ada.add([new(word, created_at=start + timedelta(days=day), session="s")])
    assert {hit.memory.text for hit in ada.search("alpha", threshold=None)} == {"alpha", "beta"}
    assert {hit.memory.text for hit in ada.search("gamma", threshold=None)} == {"gamma", "beta"}
    assert store.verify().ok


def test_a_date_can_be_asked_for(ada: ScopedMemories) -> None:
    when = datetime(2023, 5, 8, tzinfo=UTC)
    ada.add([new("We met the twins.", created_at=when), new("It was quiet.", created_at=when.replace(month=9))])
    assert ada.search("what happened in May 2023?")[0].memory.text == "We met the twins."


def test_query_words() -> None:
    assert query_words("What is the NAME of my dog, the dog?") == ["name", "dog"]
    assert query_words("who are you") == ["who", "are", "you"]
    assert query_words("¿?!") == []
    assert len(query_words(" ".join(f"w{n}" for n in range(10_000)))) == MAX_WORDS


@pytest.mark.parametrize(
    "query",
    [
        '"',
        "'",
        "AND",
        "a OR",
        "NOT x",
        "text:dog",
        "sp : sp1",
        "*",
        "dog*",
        "^dog",
        "{text}: x",
        "NEAR(a b)",
        "a-b",
        "-- ;",
    ],
)
def test_query_syntax_is_text(facts: ScopedMemories, query: str) -> None:
    facts.search(query, embed(query))


@pytest.mark.parametrize(
    "how",
    [
        {"text": None},
        {"text": "a\0b"},
        {"text": "\ud800"},
        {"text": "x" * 1_000_001},
        {"top_k": -1},
        {"top_k": "3"},
        {"threshold": "high"},
        {"vector": np.full(DIM, np.nan, np.float32)},
        {"vector": np.zeros(DIM + 1, np.float32)},
        {"vector": [0.0] * DIM},
        {"exclude": [7]},
        {"role": "x"},
        {"colour": "red"},
    ],
)
def test_bad_searches_are_refused(facts: ScopedMemories, how: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        facts.search(**({"text": "dog"} | how))  # type: ignore[arg-type]


def test_the_dense_leg_is_exact(store: Store) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((700, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for scope, part in [(ADA, range(500)), (BOB, range(500, 700))]:  # two partitions
        store.scope(scope).add([new(f"number {i}", id=str(i), embedding=vectors[i]) for i in part])
    for query in vectors[::90]:
        for scope, part in [(ADA, vectors[:500]), (BOB, vectors[500:])]:
            exact = np.argsort(-(part @ query))[:10] + (0 if scope is ADA else 500)
            hits = store.scope(scope).search("", query, top_k=10, threshold=None)
            assert ids(hits) == [str(i) for i in exact]


def test_fusion_of_nothing_and_of_equals() -> None:
    assert fuse({}, {}, 0.0, 0.05) == []
    assert [c.key for c in fuse({}, {1: 0.5, 3: 0.5, 2: 0.5}, 0.0, 0.05)] == [3, 2, 1]  # newest first
    assert all(c.score == 0.0 for c in fuse({}, {1: 0.5, 2: 0.5}, 0.0, 0.05))


SCORES = st.dictionaries(st.integers(1, 40), st.floats(0.01, 20), max_size=POOL)
COSINES = st.dictionaries(st.integers(1, 40), st.floats(-1, 1), max_size=POOL)


@given(lexical=SCORES, dense=COSINES)
def test_fusion_ranks_by_both_legs(lexical: dict[int, float], dense: dict[int, float]) -> None:
    found = fuse(lexical, dense, 0.0, 0.05)
    assert {c.key for c in found} == set(lexical) | set(dense)
    assert all(np.isfinite(c.score) for c in found)
    for better in found:
        for worse in found:
            if (better.lexical or 0.0) >= (worse.lexical or 0.0) and (
                (better.dense if better.dense is not None else -2.0)
                >= (worse.dense if worse.dense is not None else 2.0)
            ):
                assert better.score >= worse.score - 1e-9


TAGS = st.lists(st.sampled_from(["red", "big", "old"]), max_size=2, unique=True)
START = datetime(2024, 1, 1, tzinfo=UTC)
MEMORY = st.fixed_dictionaries(
    {
        "role": st.sampled_from(list(Role)),
        "tags": TAGS,
        "session": st.sampled_from([None, "s", "S", "t"]),
        "day": st.integers(0, 5),
        "pinned": st.booleans(),
        "warm": st.booleans(),
        "uses": st.integers(0, 2),
    }
)
FILTER = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(list(Role)),
        "tags": TAGS,
        "session": st.sampled_from(["s", "S", "t", "u"]),
        "since": st.integers(0, 5),
        "until": st.integers(0, 5),
        "pinned": st.booleans(),
        "tier": st.sampled_from(["warm", "cold"]),
        "min_uses": st.integers(0, 2),
    },
)


@settings(max_examples=30)
@given(memories=st.lists(MEMORY, min_size=1, max_size=12), filters=st.lists(FILTER, min_size=3, max_size=6))
def test_filters_are_what_brute_force_says(memories: list[dict], filters: list[dict]) -> None:
    compare_with_brute_force("sqlite", memories, filters)


@settings(max_examples=3)
@given(memories=st.lists(MEMORY, min_size=6, max_size=12), filters=st.lists(FILTER, min_size=6, max_size=6))
def test_filters_on_postgres_are_what_brute_force_says(memories: list[dict], filters: list[dict]) -> None:
    compare_with_brute_force("postgresql", memories, filters)


def compare_with_brute_force(backend: str, memories: list[dict], filters: list[dict]) -> None:
    def day(number: int) -> datetime:
        return START + timedelta(days=number)

    def passes(m: dict, f: dict) -> bool:
        return (
            m["role"] == f.get("role", m["role"])
            and set(f.get("tags", ())) <= set(m["tags"])
            and ("session" not in f or m["session"] == f["session"])
            and m["day"] >= f.get("since", 0)
            and m["day"] < f.get("until", 99)
            and m["pinned"] == f.get("pinned", m["pinned"])
            and m["warm"] == {"warm": True, "cold": False}.get(f.get("tier", ""), m["warm"])
            and m["uses"] >= f.get("min_uses", 0)
        )

    with servers.fresh(backend) as store:
        handle = store.scope(ADA)
        store.scope(BOB).add([new("hello from someone else", session="s", tags=("red",))])
        stored = handle.add(
            [
                NewMemory(
                    text=f"hello {i}",
                    role=m["role"],
                    turn=f"t{i}",
                    n_tokens=2,
                    embedding=embed(f"hello {i}"),
                    session=m["session"],
                    created_at=day(m["day"]),
                    tags=tuple(m["tags"]),
                    id=str(i),
                    pinned=m["pinned"],
                )
                for i, m in enumerate(memories)
            ]
        )
        for memory, m in zip(stored, memories, strict=True):
            if m["warm"]:
                attach(handle, memory, b"kv")
            for use in range(m["uses"]):
                handle.record_uses([(memory.id, 0.5)], turn=f"q{use}")
        for f in filters:
            expected = {str(i) for i, m in enumerate(memories) if passes(m, f)}
            given_ = {k: day(v) if k in ("since", "until") else v for k, v in f.items()}
            assert {m.id for m in handle.list(**given_)} == expected
            assert handle.count(**given_) == len(expected)
            assert set(ids(handle.search("hello", embed("hello"), threshold=None, top_k=99, **given_))) == expected
            assert set(ids(handle.search("", embed("hello"), threshold=None, top_k=99, **given_))) == expected


def test_a_session_handle_searches_its_session_only(store: Store) -> None:
    whole = store.scope(ADA)
    whole.add([new("the red kite", session="one"), new("the red fox", session="two"), new("the red car")])
    one = store.scope(Scope(user="ada", session="one"))
    assert [hit.memory.text for hit in one.search("red", embed("red"), threshold=None)] == ["the red kite"]
    assert len(whole.search("red", embed("red"), threshold=None)) == 3
