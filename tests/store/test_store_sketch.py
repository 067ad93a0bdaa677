"""Large spaces on SQLite: every vector, or the signs of every vector, compared in arrays, in step with the tables."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from store_world import ADA, BOB

from agentmem.records import Scope
from agentmem.store import EmbedderId, NewMemory, ScopedMemories, Store, sketch, sqlite_search
from agentmem.store.places import find_place
from agentmem.store.sqlite_search import dense_leg, vec_table

DIM = 160
WIDE = EmbedderId("wide", DIM, noise=DIM**-0.5)
pytestmark = pytest.mark.sqlite  # PostgreSQL has an index of its own for what this does


def unit(seed: int, middle: float = 0.3) -> np.ndarray:
    """A vector; all have a part in common, as those of encoders do."""
    made = np.random.default_rng(seed).standard_normal(DIM).astype(np.float32) + np.float32(middle)
    return made / np.linalg.norm(made)


def memory(number: int) -> NewMemory:
    return NewMemory(
        text=f"number {number}", role="user", turn=str(number), n_tokens=2, id=str(number), embedding=unit(number)
    )


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with Store.open(path, embedder=WIDE) as opened:
        yield opened


@pytest.fixture
def ada(store: Store) -> ScopedMemories:
    handle = store.scope(ADA)
    handle.add([memory(number) for number in range(300)])
    store.scope(BOB).add([memory(number) for number in range(50)])
    return handle


@pytest.fixture(autouse=True)
def held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Vectors are held of spaces as small as these."""
    monkeypatch.setattr(sqlite_search, "LEAST_HELD", 1)


@pytest.fixture
def sketched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sketches also for spaces as small as these, with every memory among the candidates."""
    monkeypatch.setattr(sketch, "LEAST", 1)
    monkeypatch.setattr(sketch, "OVERSAMPLE", 80)


def dense(store: Store, query: np.ndarray, limit: int = 50, also: frozenset[int] = frozenset()) -> dict[int, float]:
    with store.database.read() as connection:
        place = find_place(connection, ADA)
        assert place is not None
        return dense_leg(connection, place.space_id, 1, query.tobytes(), limit, None, also)


def expected(handle: ScopedMemories, query: np.ndarray, limit: int = 50) -> list[str]:
    held = {memory.id: memory.text for memory in handle.list(limit=1000)}
    vectors = {id_: unit(int(text.split()[1])) for id_, text in held.items()}
    return sorted(held, key=lambda id_: -float(vectors[id_] @ query))[:limit]


def ids(store: Store, found: dict[int, float]) -> list[str]:
    with store.database.read() as connection:
        names = dict(connection.exec_driver_sql("SELECT id, uid FROM memory").fetchall())
    return [names[key] for key in found]


def check(store: Store, handle: ScopedMemories, seed: int) -> None:
    query = unit(1000 + seed)
    found = dense(store, query)
    assert ids(store, found) == expected(handle, query)
    assert list(found.values()) == sorted(found.values(), reverse=True)


def test_every_vector_is_compared(ada: ScopedMemories, store: Store) -> None:
    for seed in range(5):
        check(store, ada, seed)
    assert len(dense(store, unit(0), limit=1000)) == 300
    assert next(iter(dense(store, unit(7)).values())) == pytest.approx(1.0)


@pytest.mark.parametrize("least", [1, 10_000], ids=["signs", "whole"])
@pytest.mark.usefixtures("sketched")
def test_what_is_held_follows_what_its_own_process_and_others_write(
    least: int, ada: ScopedMemories, store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sketch, "LEAST", least)
    dice = random.Random(5)
    check(store, ada, 0)
    with Store.open(path, embedder=WIDE) as other:
        theirs = other.scope(ADA)
        fresh = iter(range(300, 1000))
        for seed in range(25):
            writer = dice.choice([ada, theirs])
            held = [memory.id for memory in writer.list(limit=1000)]
            act = dice.choice(["add", "add", "delete", "update"])
            if act == "add":
                writer.add([memory(next(fresh)) for _ in range(dice.randrange(1, 70))])
            elif act == "delete":
                writer.delete(dice.sample(held, dice.randrange(1, 40)))
            else:
                number = next(fresh)
                writer.update(dice.choice(held), text=f"number {number}", n_tokens=2, embedding=unit(number))
            check(store, ada, seed)
            check(other, theirs, seed)
        store.rebuild_indexes()
        check(other, theirs, 99)
        assert store.verify().ok


@pytest.mark.parametrize("least", [1, 10_000], ids=["signs", "whole"])
def test_a_vector_that_is_replaced_in_its_place_is_noticed(
    least: int, ada: ScopedMemories, store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sketch, "LEAST", least)
    monkeypatch.setattr(sketch, "OVERSAMPLE", 1)  # so that the signs alone decide
    query = unit(700)
    before = ids(store, dense(store, query, limit=1))
    with Store.open(path, embedder=WIDE) as other:
        for id_ in ("7", "299"):
            assert [id_] != before
            other.scope(ADA).update(id_, text="number 700", n_tokens=2, embedding=query)
            assert ids(store, dense(store, query, limit=1)) == [id_]
            other.scope(ADA).update(id_, text="number 701", n_tokens=2, embedding=unit(701))


@pytest.mark.usefixtures("sketched")
def test_an_older_snapshot_is_answered_as_it_was(ada: ScopedMemories, store: Store) -> None:
    query = unit(2000)
    before = dense(store, query)
    with store.database.read() as old:
        place = find_place(old, ADA)
        assert place is not None
        ada.delete([ids(store, before)[0]])
        ada.add([memory(400 + number) for number in range(100)])
        now = dense(store, query)
        assert next(iter(before)) not in now
        assert dense_leg(old, place.space_id, 1, query.tobytes(), 50, None, frozenset()) == before
    assert dense(store, query) == now


def test_candidates_hold_nearly_all_true_neighbours(store: Store) -> None:
    handle = store.scope(ADA)
    handle.add([memory(number) for number in range(3000)])
    with store.database.read() as connection:
        place = find_place(connection, ADA)
        assert place is not None
        held = hit = 0
        for seed in range(20):
            query = unit(5000 + seed)
            true = sketch.nearest(connection, vec_table(1), place.space_id, 0, query.tobytes(), 10, frozenset())
            near = sketch.candidates(connection, vec_table(1), place.space_id, 0, query.tobytes(), 200)
            assert len(near) == len(set(near)) == 200
            held, hit = held + len(true), hit + len(true.keys() & set(near))
    # Vectors without any neighbourhood are the hardest there are, and 200 of 3,000 would hold 7 % of them by chance.
    assert hit / held > 0.5


def test_sketches_are_let_go_when_there_are_too_many(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sketch, "LEAST", 1)
    monkeypatch.setattr(sketch, "BUDGET", 0)
    with store.database.read() as connection:
        pool = connection.engine.pool
    for scope in (ADA, BOB):
        handle = store.scope(scope)
        handle.add([memory(number) for number in range(100)])
        assert handle.search("", unit(3), top_k=1, threshold=None)[0].memory.text == "number 3"
    assert len(sketch._shelves[pool].held) == 1


@pytest.mark.parametrize("least", [1, 10_000, None], ids=["signs", "whole", "vec0"])
def test_those_that_words_found_are_compared_too(
    least: int | None, ada: ScopedMemories, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    if least is None:
        monkeypatch.setattr(sqlite_search, "LEAST_HELD", 10_000)
    else:
        monkeypatch.setattr(sketch, "LEAST", least)
    every = dense(store, unit(7), limit=300)
    also = frozenset([next(iter(every)), list(every)[150], list(every)[299]])
    found = dense(store, unit(7), limit=10, also=also)
    assert list(found)[:10] == list(every)[:10]
    assert found.keys() == set(list(every)[:10]) | also
    assert found == pytest.approx({key: every[key] for key in found}, abs=1e-6)


def test_nothing_is_held_of_what_was_deleted(ada: ScopedMemories, store: Store) -> None:
    check(store, ada, 0)
    with store.database.read() as connection:
        shelf = sketch._shelves[connection.engine.pool]
    assert len(shelf.held) == 1
    ada.delete("7")
    assert len(shelf.held) == 0


def test_short_vectors_and_long_answers_are_compared_in_full(
    ada: ScopedMemories, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sketch, "LEAST", 1)
    monkeypatch.setattr(sketch, "candidates", None)  # called, it would fail
    monkeypatch.setattr(sketch, "LEAST_DIM", DIM + 1)
    check(store, ada, 1)
    monkeypatch.setattr(sketch, "LEAST_DIM", DIM)
    assert len(dense(store, unit(1), limit=sketch.MOST)) == 300


def test_a_large_space_that_waits_for_all_its_vectors_is_searched_by_words(store: Store, sketched: None) -> None:
    carol = store.scope(Scope(user="carol"))
    carol.add([NewMemory(text=f"number {n}", role="user", turn=str(n), n_tokens=2) for n in range(20)])
    assert carol.search("number 7", unit(7))[0].memory.text == "number 7"
