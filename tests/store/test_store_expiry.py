"""Memories that expire: gone from every answer at once, from the files with the next write, in every process."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from servers import found_in
from store_world import ADA, BOB, EMBEDDER, Where, attach, embed, finish, new, python

from agentmem.errors import InvalidInput, NotFound
from agentmem.records import Memory, Scope
from agentmem.store import EvictionPolicy, ScopedMemories, Store, expiry
from agentmem.store.inputs import now_us
from agentmem.store.places import has_expired, see_all
from agentmem.store.schema import MemoryRow

SECRET = "Qvortak hides the zwybrunel under jyxomplar"
NEEDLES = (b"vortak", b"wybrunel", b"yxomplar", b"INLINEKV" * 20, b"FILEDKV!" * 20, embed(SECRET).tobytes()[:16])
SOON = timedelta(seconds=0.4)
DAY = timedelta(days=1)


def tomorrow() -> datetime:
    return datetime.now(UTC) + DAY


def let_expire(handle: ScopedMemories, *ids: str) -> None:
    """Only now, so that a slow machine does not come too late for what a test does before."""
    for id in ids:
        last = handle.expire(id, datetime.now(UTC) + SOON).expires_at
    assert last is not None
    time.sleep(max(0.0, (last - datetime.now(UTC)).total_seconds()) + 0.01)


def rows(store: Store) -> int:
    """Memories in the table, whether anybody sees them or not."""
    with store.database.read() as connection:
        see_all(connection)
        return connection.scalar(sa.select(sa.func.count()).select_from(MemoryRow)) or 0


@pytest.fixture
def secret(ada: ScopedMemories) -> Memory:
    """A memory that expires some day, amid others, with KV inline and in a file."""
    ada.add([new("tea at noon", session="s", id="before")])
    (memory,) = ada.add([new(SECRET, session="s", id="secret", turn="turn", expires_at=tomorrow())])
    ada.add([new("cake at four", session="s", id="after")])
    attach(ada, memory, b"INLINEKV" * 1000, "model-a")
    attach(ada, memory, b"FILEDKV!" * 100_000, "model-b")
    assert ada.search("qvortak", embed(SECRET), threshold=None)[0].memory.id == "secret"
    return memory


ASKED: dict[str, Callable[[ScopedMemories], object]] = {
    "list": lambda handle: [memory.id for memory in handle.list() if memory.id == "secret"],
    "count": lambda handle: handle.count() - 2,
    "search": lambda handle: [hit for hit in handle.search(SECRET, embed(SECRET)) if hit.memory.id == "secret"],
    "search of the session": lambda handle: [
        hit for hit in handle.search(SECRET, embed(SECRET), session="s") if hit.memory.id == "secret"
    ],
    "digests": lambda handle: handle.kv_digests(["secret"], fingerprint="model-a"),
    "kv": lambda handle: handle.load_kv(["secret"], fingerprint="model-b").payloads,
    "stats": lambda handle: handle.stats().warm,
    "dry prune": lambda handle: [p for p in handle.prune(max_bytes=0, dry_run=True).pruned if p.id == "secret"],
}


@pytest.mark.parametrize("asked", ASKED)
def test_from_its_moment_on_it_is_in_no_answer(ada: ScopedMemories, store: Store, secret: Memory, asked: str) -> None:
    assert ASKED[asked](ada)
    let_expire(ada, "secret")
    assert rows(store) == 3, "nobody wrote, so it is still in the table, and must be left out"
    assert not ASKED[asked](ada)


def test_what_changes_or_exports_does_not_see_it_either(
    ada: ScopedMemories, store: Store, secret: Memory, tmp_path: Path
) -> None:
    let_expire(ada, "secret")
    ada.export(tmp_path / "out.jsonl")
    assert SECRET not in (tmp_path / "out.jsonl").read_text()
    assert store.stats().memories == 2
    assert store.pending_embeddings() == []
    for change in (
        lambda: ada.get("secret"),
        lambda: ada.pin("secret"),
        lambda: ada.update("secret", tags=("x",)),
        lambda: ada.delete("secret"),
        lambda: ada.expire("secret", None),
    ):
        with pytest.raises(NotFound):
            change()
    assert not attach(ada, secret, b"late")


def test_the_next_write_of_anyone_takes_it_out_of_every_file(
    ada: ScopedMemories, store: Store, where: Where, secret: Memory
) -> None:
    let_expire(ada, "secret")
    store.database.checkpoint()
    assert {needle for _, needle in found_in(where, *NEEDLES)} == set(NEEDLES)
    store.scope(BOB).add([new("unrelated")])
    assert found_in(where, *NEEDLES) == []
    assert [(event.action, event.reason) for event in ada.history("secret")][-1] == ("evicted", "expired")
    assert ada.search("zwybrunel") == [], "the neighbours' keys do not quote it"
    assert store.verify().ok
    assert (store.stats().memories, store.stats().kv_bytes) == (3, 0)


@pytest.mark.parametrize("how", ["evict", "open", "uses"])
def test_upkeep_takes_it_out(ada: ScopedMemories, store: Store, where: Where, secret: Memory, how: str) -> None:
    let_expire(ada, "secret")
    if how == "evict":
        assert store.evict(dry_run=True).pruned == ()
        assert rows(store) == 3
        store.evict()
    elif how == "open":
        store.database.close()  # as after a kill: closing in order writes
        with Store.open(where, embedder=EMBEDDER) as again:
            assert rows(again) == 2
        assert found_in(where, *NEEDLES) == []
        return
    else:
        ada.record_uses([("before", 0.5), ("secret", 0.5)], turn="t")
        assert ada.get("before").uses == 1
    assert rows(store) == 2
    assert found_in(where, *NEEDLES) == []


def test_pinned_ones_expire_too_and_others_stay(ada: ScopedMemories) -> None:
    ada.add([new("a", id="a", pinned=True, expires_at=tomorrow())])
    ada.add([new("b", id="b", expires_at=tomorrow()), new("c", id="c")])
    let_expire(ada, "a")
    assert sorted(memory.id for memory in ada.list()) == ["b", "c"]


def test_the_date_can_be_set_moved_and_taken_away(ada: ScopedMemories) -> None:
    ada.add([new("a", id="a"), new("b", id="b", expires_at=tomorrow())])
    at = datetime.now(UTC) + DAY
    assert ada.expire("a", at).expires_at == at
    assert ada.expire("b", None).expires_at is None
    let_expire(ada, "a")
    assert [memory.id for memory in ada.list()] == ["b"]
    assert [event.reason for event in ada.history("b")][1:] == ["expires never"]
    assert ada.history("a")[1].reason == f"expires {at:%Y-%m-%d %H:%M:%S}+00:00"


@pytest.mark.parametrize(
    ("at", "match"),
    [
        (datetime.now(UTC) - DAY, "has passed"),
        (datetime(2100, 1, 1), "time zone"),
        ("tomorrow", "time zone"),
    ],
)
def test_a_date_that_cannot_be_is_refused(ada: ScopedMemories, at: object, match: str) -> None:
    with pytest.raises(InvalidInput, match=match):
        ada.add([new("a"), new("b", expires_at=at)])
    assert ada.count() == 0
    ada.add([new("a", id="a")])
    with pytest.raises(InvalidInput, match=match):
        ada.expire("a", at)  # type: ignore[arg-type]
    assert ada.get("a").expires_at is None


def test_an_export_keeps_the_date_and_a_late_import_leaves_out_what_expired(
    ada: ScopedMemories, store: Store, tmp_path: Path
) -> None:
    at = datetime.now(UTC) + DAY
    ada.add([new("long", id="long", expires_at=at)])
    ada.add([new("short", id="short", expires_at=tomorrow())])
    file, old = tmp_path / "out.jsonl", tmp_path / "old.jsonl"
    ada.expire("short", datetime.now(UTC) + 5 * SOON)
    assert ada.export(file) == 2
    time.sleep(5 * SOON.total_seconds())
    bob = store.scope(BOB)
    assert bob.load(file) == 1
    assert [(memory.id, memory.expires_at) for memory in bob.list()] == [("long", at)]
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines[1:]:
        del line["expires_at"]
    old.write_text("".join(json.dumps(line) + "\n" for line in lines))
    carl = store.scope(Scope(user="carl"))
    assert carl.load(old) == 2
    assert carl.get("short").expires_at is None


def test_an_expired_id_and_turn_can_be_used_again_though_many_wait_to_be_erased(
    ada: ScopedMemories, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expiry, "MOST", 1)
    at = datetime.now(UTC) + 5 * SOON
    ada.add([new(f"old {n}", id=f"m{n}", turn=f"t{n}", expires_at=at) for n in range(5)])
    time.sleep(5 * SOON.total_seconds())
    again = ada.add([new("new", id="m4", turn="t4"), new("other", turn="t3", id="other")])
    assert [memory.text for memory in again] == ["new", "other"]
    assert rows(store) == 4, "one went with the write, two made way, two wait"
    assert store.erase_expired() == 2
    assert [memory.text for memory in ada.list(sort="created_at")] == ["new", "other"]
    assert store.verify().ok


def test_a_stream_goes_with_a_memory_of_its_session(ada: ScopedMemories, store: Store, where: Where) -> None:
    ada.add([new("said", session="s", id="said", expires_at=tomorrow())])
    sizes = {"fingerprint": "f", "record_bytes": 8, "index_bytes": 4}
    with ada.open_stream("s", **sizes) as stream:  # type: ignore[arg-type]
        stream.append(b"vqxvqxvq", b"indx")
        stream.commit(b"vqxtail", 3, {})
        assert stream.is_current()
        let_expire(ada, "said")
        assert not stream.is_current()
    with ada.open_stream("s", **sizes) as stream:  # type: ignore[arg-type]
        assert (stream.n_records, stream.n_tokens) == (0, 0)
    assert found_in(where, b"vqxvqxvq", b"vqxtail") == []


def test_another_process_sees_it_go_at_the_same_moment(ada: ScopedMemories, where: Where) -> None:
    reader = python(
        "import sys, time\n"
        "from agentmem.records import Scope\n"
        "from agentmem.store import Store\n"
        "with Store.open(sys.argv[1]) as store:\n"
        "    handle = store.scope(Scope(user='ada'))\n"
        "    print('looking', flush=True)\n"
        "    while not (found := handle.search('zwybrunel')): time.sleep(0.01)\n"
        "    end = found[0].memory.expires_at.timestamp()\n"
        "    while time.time() < end: time.sleep(0.01)\n"
        "    assert handle.search('zwybrunel') == [] and handle.list() == []\n"
        "    print('gone')\n",
        where,
    )
    assert reader.stdout is not None
    assert reader.stdout.readline() == "looking\n", "it is there before the clock runs"
    ada.add([new(SECRET, id="secret", expires_at=datetime.now(UTC) + timedelta(seconds=4))])
    assert "gone" in finish(reader)


def test_looking_for_expired_ones_is_one_look_into_a_small_index(
    ada: ScopedMemories, store: Store, backend: str
) -> None:
    ada.add([new(f"tea {number}") for number in range(1000)])  # of a few, anything is quick
    ada.add([new("cake", expires_at=tomorrow())])
    of_all = sa.select(MemoryRow.id).where(has_expired(MemoryRow, now_us())).order_by(MemoryRow.expires_us).limit(9)
    of_space = sa.select(MemoryRow.id).where(has_expired(MemoryRow, now_us()), MemoryRow.space_id == 1)
    with store.database.write() as connection:
        see_all(connection)
        if backend == "postgresql":
            connection.exec_driver_sql("ANALYZE memory")  # or the plan hangs on whether the server's own has come by
        for query, name in ((of_all, "ix_memory_expires"), (of_space, "ix_memory_space_expires")):
            text = str(query.compile(connection, compile_kwargs={"literal_binds": True}))
            if backend == "sqlite":
                (plan,) = [row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}")]
                assert plan.startswith("SEARCH")
                assert f"INDEX {name} " in plan
                assert "expires_us<?" in plan
            else:
                plan = " ".join(connection.scalars(sa.text(f"EXPLAIN {text}")))
                either = "ix_memory_(space_)?expires"  # both hold nothing but what expires
                assert re.search(rf"Index (Only )?Scan (using|on) {either} .*Cond: .*expires_us <=", plan), plan


def test_budgets_count_nothing_that_has_expired(where: Where) -> None:
    with Store.open(where, embedder=EMBEDDER, eviction=EvictionPolicy(space_memories=3, grace=timedelta(0))) as store:
        handle = store.scope(ADA)
        handle.add([new("short", id="short", expires_at=tomorrow())])
        handle.add([new("b", id="b"), new("c", id="c")])
        let_expire(handle, "short")
        handle.add([new("d", id="d")])
        assert sorted(memory.id for memory in handle.list()) == ["b", "c", "d"]
