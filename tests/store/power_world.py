"""A life of a store in small acts, each one transaction, and what a store must be like after a power loss in it.

``live`` runs the acts and notes after each what the store holds. Whenever the power goes, the store that is opened
next holds exactly what it held before the act under way, or exactly what it held after: nothing in between, nothing
acknowledged missing, nothing forgotten back.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import sqlalchemy as sa
from disk_tap import Tap
from store_world import ADA, BOB, EMBEDDER, attach, embed, files_of, new
from stream_world import entry, open_stream, pattern, record

from agentmem.store import EvictionPolicy, NewKV, Store, text_digest
from agentmem.store.schema import EventRow, SessionRow, StreamRow
from agentmem.store.verify import orphans

POLICY = EvictionPolicy(space_memories=12, space_kv_bytes=2_000_000, grace=timedelta(0))
INLINE, FILE = 5_000, 300_000
"""Bytes of a payload in the database, and of one in a file of its own."""

Held = str
"""What a store holds, as one line of JSON, so that a difference can be read."""


def held(store: Store) -> Held:
    """Every memory with its KV, what is audited, and every stream."""
    found: dict[str, object] = {}
    for scope in (ADA, BOB):
        handle = store.scope(scope)
        memories = {memory.id: memory for memory in handle.list(limit=1000)}
        loaded = handle.load_kv(memories, fingerprint="model-a")
        assert loaded.damaged == (), f"a row names bytes that are not there: {loaded.damaged}"
        found[scope.user] = {
            id_: [
                memory.text,
                memory.pinned,
                memory.uses,
                _digest(loaded.payloads[id_].data if id_ in loaded.payloads else b""),
            ]
            for id_, memory in sorted(memories.items())
        }
    with store.database.read() as connection:
        events = sa.select(EventRow.action, sa.func.count()).group_by(EventRow.action).order_by(EventRow.action)
        found["audit"] = [list(row) for row in connection.execute(events)]
        streams = sa.select(SessionRow.label, StreamRow.n_records, StreamRow.tail_uri).join(
            SessionRow, SessionRow.id == StreamRow.session_id
        )
        rows = connection.execute(streams.where(StreamRow.tail_uri.is_not(None))).all()
    assert store.files is not None
    found["streams"] = [[row.label, row.n_records, _digest(store.files.read(row.tail_uri) or b"")] for row in rows]
    return json.dumps(found, sort_keys=True)


def _digest(data: bytes | bytearray) -> str:
    return hashlib.sha256(data).hexdigest()[:12]


def payload(name: str, size: int) -> bytes:
    return pattern(size, "payload", name)


@dataclass(frozen=True)
class Act:
    """One unit of work; done again after a failure it does the same."""

    name: str
    do: Callable[[], object]
    gone: tuple[bytes, ...] = ()
    """What must be in no file from then on."""


def acts(store: Store, elsewhere: Path) -> list[Act]:
    """A whole life. ``elsewhere`` is a folder for what does not belong to the store."""
    ada, bob = store.scope(ADA), store.scope(BOB)
    exported, made_up = elsewhere / "bob.jsonl", elsewhere / "many.jsonl"

    def add(*names: str) -> None:
        ada.add([new(f"{name} tells something of {name}hood", id=name, session="s") for name in names])

    def attach_many(**sizes: int) -> None:
        digests = {name: text_digest(ada.get(name).text) for name in sizes}
        many = [NewKV(name, payload(name, size), "int8", digests[name]) for name, size in sizes.items()]
        ada.attach_kv_many(many, fingerprint="model-a")

    def extend(salt: str, count: int) -> None:
        with open_stream(ada, "s") as stream:
            for _ in range(count):
                stream.append(record(stream.n_records, salt), entry(stream.n_records, salt))
            stream.commit(pattern(4_000, salt), 128 * stream.n_records, {})

    def use() -> None:
        ada.record_uses([("ant", 0.5), ("bee", 0.1)], turn="q1")
        store.flush_uses()

    def forget_bob() -> None:
        bob.export(exported)
        bob.forget_scope()

    def load() -> None:
        header, *_, line = (json.loads(line) for line in exported.read_text().splitlines())
        many = [line | {"id": f"m{n}", "turn": f"m{n}", "text": f"loaded {n}"} for n in range(5)]
        made_up.write_text("\n".join(json.dumps(one) for one in [header | {"memories": 5}, *many]))
        bob.load(made_up)

    quiet = "the bee has gone quiet"
    return [
        Act("add", lambda: add("ant", "bee", "cat", "dog")),
        Act("attach", lambda: attach_many(ant=INLINE, bee=FILE, cat=FILE)),
        Act("use", use),
        Act("attach again", lambda: attach_many(bee=FILE + 1)),
        Act("pin", lambda: ada.pin("dog")),
        Act("begin a stream", lambda: extend("first", 2)),
        Act("continue a stream", lambda: extend("second", 2)),
        Act("delete", lambda: ada.delete("cat"), (b"cathood", payload("cat", FILE)[:64])),
        Act("update", lambda: ada.update("bee", text=quiet, n_tokens=5, embedding=embed(quiet)), (b"beehood",)),
        Act("attach after an update", lambda: attach_many(bee=FILE)),
        Act("write for bob", lambda: bob.add([new("bobs own words", id="bob")])),
        Act("attach for bob", lambda: attach(bob, bob.get("bob"), payload("bob", FILE))),
        Act("evict", lambda: add("elk", "fox", "gnu", "hen", "ibis", "jay", "koi", "lark", "mole", "newt")),
        Act("forget a scope", forget_bob, (b"bobs own words", payload("bob", FILE)[:64])),
        Act("attach to many", lambda: attach_many(**dict.fromkeys(("lark", "mole", "newt", "koi"), FILE))),
        Act("drop KV", lambda: ada.prune(max_bytes=700_000)),
        Act("prune", lambda: ada.prune(max_memories=6)),
        Act("load", load),
        Act("rebuild indexes", store.rebuild_indexes),
        Act("verify", lambda: store.verify(repair=True)),
        Act("stream anew", lambda: extend("third", 1)),
    ]


@dataclass
class Life:
    """The acts that were done, as the live store saw them."""

    names: list[str]
    after: list[Held]
    """What was held before the first act, and after each."""
    gone: list[list[bytes]] = field(default_factory=lambda: [[]])
    """What must be in no file any more, in step with ``after``."""

    def note(self, name: str, holds: Held, *gone: bytes) -> None:
        """One act was done."""
        self.names.append(name)
        self.after.append(holds)
        self.gone.append([*self.gone[-1], *gone])


def live(tap: Tap, path: Path, elsewhere: Path) -> Life:
    """Open a store, do all acts between two marks each, and close it."""
    before = elsewhere / "before.db"
    if path.exists():
        shutil.copy(path, before)
    with Store.open(before, embedder=EMBEDDER, eviction=POLICY) as other:
        life = Life([], [held(other)])
    tap.mark("begin open")
    store = Store.open(path, embedder=EMBEDDER, eviction=POLICY)
    tap.mark("done open")
    life.note("open", held(store))
    for act in acts(store, elsewhere):
        tap.mark(f"begin {act.name}")
        act.do()
        tap.mark(f"done {act.name}")
        life.note(act.name, held(store), *act.gone)
    tap.mark("begin close")
    store.close()
    tap.mark("done close")
    life.note("close", life.after[-1])
    return life


def check(path: Path, allowed: set[Held], gone: list[bytes]) -> None:
    """What must hold of a store whose process, or machine, stopped."""
    with Store.open(path, embedder=EMBEDDER, eviction=POLICY) as store:
        found = held(store)
        assert found in allowed, f"holds {found}\nnot one of\n" + "\n".join(sorted(allowed))
        for file in files_of(path):
            content = file.read_bytes()
            assert [needle for needle in gone if needle in content] == [], f"forgotten and back in {file.name}"
        long_ago = 7_200.0
        for uri in orphans(store, 0.0):  # a write that was under way; after an hour it cannot be one any more
            assert store.files is not None
            age = os.stat(store.files.root / uri).st_mtime - long_ago
            os.utime(store.files.root / uri, (age, age))
        report = store.verify(repair=True)
        assert [problem for problem in report.problems if problem.kind != "orphan_file"] == []
        assert orphans(store, 0.0) == []
        assert store.verify().ok
        assert held(store) == found
        handle = store.scope(ADA)
        (memory,) = handle.add([new("life goes on")])
        assert handle.search("life goes on", embed("life goes on"))[0].memory.id == memory.id
