"""Stores that earlier versions wrote: one packed file of every schema that was published before this one."""

from __future__ import annotations

import gzip
from contextlib import closing
from pathlib import Path

import pytest
from pysqlite3 import dbapi2
from store_world import ADA, BOB, EMBEDDER, embed, new
from stream_world import open_stream, stored

from agentmem.store import Store
from agentmem.store.opening import HEAD

FOLDER = Path(__file__).parent
SCHEMAS = sorted(path.name.removeprefix("schema_").removesuffix(".db.gz") for path in FOLDER.glob("schema_*.db.gz"))


@pytest.fixture(params=SCHEMAS)
def old(request: pytest.FixtureRequest, path: Path) -> Path:
    path.write_bytes(gzip.decompress((FOLDER / f"schema_{request.param}.db.gz").read_bytes()))
    return path


def schema(path: Path) -> dict[str, str]:
    """SQL of everything, layout aside. Columns come in the order in which they were added."""
    with closing(dbapi2.connect(path)) as connection:
        rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    return {name: " ".join(sorted(sql.replace(",", " ").replace(")", " ").split())) for name, sql in rows}


def test_there_are_some() -> None:
    assert SCHEMAS[0] == "0001"
    assert all(one < HEAD for one in SCHEMAS)


def test_everything_in_an_old_store_is_there(old: Path) -> None:
    with Store.open(old, embedder=EMBEDDER) as store:
        assert store.verify().problems == ()
        ada, bob = store.scope(ADA), store.scope(BOB)
        memories = {memory.id: memory for memory in ada.list()}
        assert set(memories) == {f"old{number}" for number in range(5)}
        assert memories["old1"].pinned
        assert memories["old0"].uses == 1
        assert memories["old0"].expires_at is None
        assert ada.load_kv(["old0"], fingerprint="model-a").payloads["old0"].codec == "int8"
        hits = ada.search("memory number 2", embed("memory number 2"), threshold=None)
        assert hits[0].memory.id == "old2"
        assert {hit.memory.id for hit in hits} == set(memories)
        assert bob.count() == 1
        assert [event.action for event in ada.history("old2")] == ["added"]
        assert store.stats().memories == 6
        assert ada.stats().kv_bytes > 0


def test_an_old_store_goes_on_as_a_new_one(old: Path) -> None:
    with Store.open(old, embedder=EMBEDDER) as store:
        ada = store.scope(ADA)
        ada.add([new("written by this one", id="new", session="s")])
        stored(ada)
        ada.delete("old1")
        assert open_stream(ada).n_records == 0
        assert ada.search("written by this one", threshold=None)[0].memory.id == "new"
        assert store.verify().problems == ()
    with Store.open(old, embedder=EMBEDDER) as store:
        assert store.scope(ADA).count() == 5


def test_an_old_store_has_the_schema_of_a_new_one_then(old: Path, tmp_path: Path) -> None:
    with Store.open(old, embedder=EMBEDDER):
        pass
    with Store.open(tmp_path / "new.db", embedder=EMBEDDER) as store:
        store.scope(ADA).add([new("one")])
        store.scope(BOB).add([new("another")])
    assert schema(old) == schema(tmp_path / "new.db")
