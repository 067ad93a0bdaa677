"""Verify and repair, rebuilding indexes, sweeping leftovers, and moving memories between stores."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from store_world import ADA, BOB, EMBEDDER, Where, attach, embed, new

from agentmem.errors import InvalidInput, StoreError
from agentmem.records import Scope
from agentmem.store import EmbedderId, ScopedMemories, Store
from agentmem.store.payloads import INLINE_MAX
from agentmem.store.places import see_all

LARGE = b"L" * (INLINE_MAX + 1)


@pytest.fixture
def full(ada: ScopedMemories) -> ScopedMemories:
    memories = ada.add([new(f"memory number {i} of mine", id=str(i), session="s") for i in range(12)])
    attach(ada, memories[0], b"inline KV")
    attach(ada, memories[1], LARGE)
    return ada


def sql(store: Store, *statements: str) -> None:
    with store.database.write() as connection:
        see_all(connection)
        for statement in statements:
            connection.exec_driver_sql(statement)


def payload_file(store: Store) -> Path:
    assert store.files is not None
    return store.files.root / next(store.files.walk())


def test_a_whole_text_index_that_another_process_wrote_is_not_reported(full: ScopedMemories, where: Where) -> None:
    with Store.open(where) as other:
        theirs = other.scope(ADA)
        assert theirs.search("memory", threshold=None)  # this connection now remembers the index
        full.add([new(f"a later memory {i}", id=f"later-{i}") for i in range(5)])
        full.delete("3")
        assert other.verify().problems == ()


@pytest.mark.sqlite  # the like for PostgreSQL is in test_store_postgres.py
@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (lambda s: sql(s, "DELETE FROM vec_memory_1 WHERE memory_id = 3"), "vector_index"),
        (lambda s: sql(s, "DELETE FROM fts_memory_1 WHERE rowid = 3"), "text_index"),
        (lambda s: sql(s, "INSERT INTO fts_memory_1(rowid, text, sp) VALUES (999, 'stray', 'sp1')"), "text_index"),
        (lambda s: sql(s, "DROP TABLE fts_memory_1"), "text_index"),
        (lambda s: sql(s, "UPDATE fts_memory_1_data SET block = zeroblob(40) WHERE id > 10"), "text_index"),
        (lambda s: sql(s, "DROP TABLE vec_memory_1"), "vector_index"),
        (lambda s: sql(s, "UPDATE embedding SET vec = zeroblob(64) WHERE memory_id = 3"), "embedding"),
        (lambda s: sql(s, "UPDATE embedding SET vec = x'0000c07f' WHERE memory_id = 3"), "embedding"),
        (lambda s: sql(s, "UPDATE kv_payload SET data = x'00' WHERE memory_id = 1"), "payload"),
        (lambda s: payload_file(s).write_bytes(b"M" * len(LARGE)), "payload"),
        (lambda s: payload_file(s).unlink(), "payload_file"),
    ],
)
def test_damage_is_found_and_repaired(full: ScopedMemories, store: Store, damage, kind: str) -> None:
    assert store.verify().checked == 12
    assert store.verify().ok
    damage(store)
    report = store.verify()
    assert not report.ok
    assert kind in {problem.kind for problem in report.problems}
    assert not any(problem.repaired for problem in report.problems)
    repaired = store.verify(repair=True)
    assert repaired.ok
    assert repaired.problems
    assert store.verify().problems == ()
    assert full.count() == 12
    for pending in store.pending_embeddings():
        store.put_embeddings([(pending, embed(pending.text))])
    assert len(full.search("memory", embed("memory"), threshold=None, top_k=20)) == 12


def test_a_damaged_text_is_reported_and_not_touched(full: ScopedMemories, store: Store) -> None:
    sql(store, "UPDATE memory SET text = 'forged' WHERE uid = '3'")
    report = store.verify(repair=True)
    assert not report.ok
    assert ("database", "3") in {(problem.kind, problem.id) for problem in report.problems}
    assert full.get("3").text == "forged"


def test_rebuilt_indexes_find_the_same(full: ScopedMemories, store: Store) -> None:
    before = full.search("number 7", embed("number 7"), threshold=None, top_k=20, explain=True)
    store.rebuild_indexes()
    assert full.search("number 7", embed("number 7"), threshold=None, top_k=20, explain=True) == before
    assert store.verify().ok


@pytest.mark.payloads
def test_what_is_left_of_a_memory_that_is_gone_goes_at_once(full: ScopedMemories, store: Store) -> None:
    assert store.payloads is not None
    there = set(store.payloads.walk())
    for name in ("01/77/88.x.kv", "01/77/88.x.kv.tmp", "streams/99/records"):
        store.payloads.write([(name, b"its writer was killed, and the memory deleted by another process")])
    assert {problem.kind for problem in store.verify(repair=True).problems} == {"orphan_file"}
    assert store.verify().ok
    assert set(store.payloads.walk()) == there
    assert store.files is None or not (store.files.root / "01" / "77").exists()


def test_a_clock_set_back_does_not_keep_leftovers_for_ever(full: ScopedMemories, store: Store, path: Path) -> None:
    assert store.files is not None
    stray = store.files.root / "01" / "77" / "1.x.kv"
    stray.parent.mkdir(parents=True)
    stray.write_bytes(b"left by a crash, in a year to come")
    in_a_year = time.time() + 365 * 86400
    os.utime(stray, (in_a_year, in_a_year))
    sql(store, f"UPDATE schema_meta SET value = '{in_a_year}' WHERE key = 'last_sweep'")
    store.close()
    with Store.open(path, embedder=EMBEDDER):
        assert not stray.exists()


def test_leftover_files_are_swept_when_old(full: ScopedMemories, store: Store, path: Path) -> None:
    assert store.files is not None
    stray = store.files.root / "01" / "77" / "1.x.kv"
    stray.parent.mkdir(parents=True)
    stray.write_bytes(b"left by a crash")
    assert store.verify().ok  # may be a write in progress
    two_hours_ago = time.time() - 7200
    os.utime(stray, (two_hours_ago, two_hours_ago))
    assert [problem.kind for problem in store.verify().problems] == ["orphan_file"]
    sql(store, "DELETE FROM schema_meta WHERE key = 'last_sweep'")
    store.close()
    with Store.open(path, embedder=EMBEDDER) as again:
        assert not stray.exists()
        assert again.verify().ok
        assert again.scope(ADA).load_kv(["1"], fingerprint="model-a").payloads["1"].data == LARGE


def test_an_export_carries_everything_but_kv(full: ScopedMemories, store: Store, tmp_path: Path) -> None:
    full.add([new("tagged", id="t", tags=("b", "a"), meta={"é": [1]}, pinned=True, session=None)])
    full.record_uses([("3", 0.5)], turn="q1")
    calls: list[tuple[int, int]] = []
    assert full.export(tmp_path / "ada.jsonl", progress=lambda done, total: calls.append((done, total))) == 13
    assert calls[-1] == (13, 13)
    bob = store.scope(BOB)
    calls.clear()
    assert bob.load(tmp_path / "ada.jsonl", progress=lambda done, total: calls.append((done, total))) == 13
    assert calls[-1] == (13, 13)
    bob.record_uses([("4", 0.5)], turn="q2")
    assert bob.load(tmp_path / "ada.jsonl") == 0  # and what happened since stays
    assert bob.get("4").uses == 1
    for memory in full.list(limit=99):
        got = bob.get(memory.id)
        if memory.id != "4":
            drift = {"frequency": got.frequency, "kv_bytes": 0, "tier": got.tier}
            moved = Scope(user="bob", session=memory.scope.session)
            assert got == memory.model_copy(update={"scope": moved} | drift)
            assert got.frequency == pytest.approx(memory.frequency, abs=1e-3)
    query = ("number 7", embed("number 7"))
    assert [h.memory.id for h in bob.search(*query, threshold=None, top_k=20)] == [
        h.memory.id for h in full.search(*query, threshold=None, top_k=20)
    ]
    assert store.pending_embeddings() == []
    assert store.verify().ok
    bob.record_uses([("3", 0.5)], turn="q1")  # that turn was credited before the move
    assert bob.get("3").uses == 1


def test_loading_into_a_session_puts_everything_there(full: ScopedMemories, store: Store, tmp_path: Path) -> None:
    full.export(tmp_path / "x.jsonl")
    handle = store.scope(Scope(user="bob", session="imported"))
    assert handle.load(tmp_path / "x.jsonl") == 12
    assert {memory.scope.session for memory in handle.list(limit=99)} == {"imported"}


def test_loading_under_another_embedder_leaves_the_vectors_behind(full: ScopedMemories, tmp_path: Path) -> None:
    full.export(tmp_path / "x.jsonl")
    with Store.open(tmp_path / "other.db", embedder=EmbedderId("other", 16)) as other:
        assert other.scope(ADA).load(tmp_path / "x.jsonl") == 12
        assert len(other.pending_embeddings()) == 12
        assert other.scope(ADA).search("number", threshold=None)


def test_loading_what_clashes_writes_nothing(full: ScopedMemories, store: Store, tmp_path: Path) -> None:
    full.export(tmp_path / "x.jsonl")
    bob = store.scope(BOB)
    bob.add([new("something else", id="11")])
    with pytest.raises(InvalidInput, match="id '11' is taken"):
        bob.load(tmp_path / "x.jsonl")
    assert bob.count() == 1


def test_an_empty_scope_can_be_moved(store: Store, tmp_path: Path) -> None:
    assert store.scope(BOB).export(tmp_path / "x.jsonl") == 0
    assert store.scope(ADA).load(tmp_path / "x.jsonl") == 0


def test_an_export_that_fails_leaves_the_old_file(full: ScopedMemories, tmp_path: Path) -> None:
    target = tmp_path / "x.jsonl"
    target.write_text("precious")

    def stop(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        full.export(target, progress=stop)
    assert target.read_text() == "precious"
    with pytest.raises(StoreError, match="cannot write"):
        full.export(tmp_path / "missing" / "x.jsonl")
    assert not [p for p in tmp_path.iterdir() if p.name.endswith(".tmp")]


def _edit(**changes: object):
    def edit(lines: list[str]) -> list[str]:
        return [*lines[:-1], json.dumps(json.loads(lines[-1]) | changes)]

    return edit


BROKEN = {
    "cut": (lambda lines: lines[:-1], "11 of 12 memories"),
    "no header": (lambda lines: lines[1:], "not an export"),
    "empty": (lambda lines: [], "is empty"),
    "newer": (lambda lines: [json.dumps(json.loads(lines[0]) | {"version": 9}), *lines[1:]], "upgrade agentmem"),
    "not JSON": (lambda lines: [*lines[:-1], "{"], "line 13 is not JSON"),
    "not an object": (lambda lines: [*lines[:-1], "7"], "line 13 is not a JSON object"),
    "unknown field": (_edit(secret=1), "unknown .'secret'."),
    "no text": (_edit(text=" "), "line 13: text is empty"),
    "type": (_edit(uses=True), "uses has the wrong type"),
    "negative": (_edit(score=-1.0), "must be from 0"),
    "date": (_edit(created_at="yesterday"), "line 13"),
    "naive date": (_edit(created_at="2024-01-01T00:00:00"), "with time zone"),
    "vector": (_edit(embedding="!!!"), "line 13"),
    "short vector": (_edit(embedding="AAAA"), "line 13"),
    "role": (_edit(role="narrator"), "role must be one of"),
    "digests": (_edit(recent_turns=["x" * 50]), "short digests"),
    "read": (_edit(recent_reads=[[1, 2.0]]), "attention shares"),
    "date of a read": (_edit(recent_reads=[[2**61, 0.5]]), "attention shares"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_loads_nothing_and_says_where(full: ScopedMemories, store: Store, tmp_path: Path, case) -> None:
    change, message = BROKEN[case]
    file = tmp_path / "x.jsonl"
    full.export(file)
    file.write_text("\n".join(change(file.read_text().splitlines())))
    with pytest.raises(InvalidInput, match=message):
        store.scope(BOB).load(file)
    assert store.scope(BOB).count() == 0


def test_a_file_that_is_no_text_is_refused(ada: ScopedMemories, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\xff\xfe\x00")
    for file in ("x", "missing"):
        with pytest.raises(InvalidInput, match="cannot read"):
            ada.load(tmp_path / file)
