"""Opening: what becomes a store, what is refused, and that what is refused is left alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from pysqlite3 import dbapi2
from store_world import ADA, EMBEDDER, Where, embed, new, python

import agentmem.store
from agentmem.errors import Closed, InvalidInput, NotFound, SchemaTooNew, StoreBusy, StoreOpenError
from agentmem.store import EmbedderId, EvictionPolicy, Store
from agentmem.store.engine import Database, check_driver
from agentmem.store.index import is_derived
from agentmem.store.opening import HEAD
from agentmem.store.schema import Base


def test_a_store_keeps_its_memories_over_a_reopen(where: Where) -> None:
    with Store.open(where, embedder=EMBEDDER) as store:
        (memory,) = store.scope(ADA).add([new("My dog is called Biscuit.")])
    with Store.open(where if isinstance(where, str) else str(where), embedder=EMBEDDER) as store:
        assert store.scope(ADA).get(memory.id) == memory


def test_a_store_in_memory_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Store.open(":memory:", embedder=EMBEDDER) as store:
        handle = store.scope(ADA)
        (memory,) = handle.add([new("My dog is called Biscuit.")])
        assert [hit.memory.id for hit in handle.search("dog", embed("dog"))] == [memory.id]
        assert store.verify().ok
    assert list(tmp_path.iterdir()) == []


def test_after_close_every_call_raises_closed(where: Where) -> None:
    store = Store.open(where, embedder=EMBEDDER)
    handle = store.scope(ADA)
    store.close()
    store.close()
    for call in (
        store.stats,
        store.verify,
        store.spaces,
        store.evict,
        handle.count,
        handle.forget_scope,
        lambda: handle.add([new("late")]),
        lambda: handle.search("late"),
        lambda: handle.get("late"),
    ):
        with pytest.raises(Closed, match="open it again"):
            call()


def test_a_relative_path_means_the_same_file_after_a_change_of_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "else").mkdir()
    with Store.open("memory.db", embedder=EMBEDDER) as store:
        store.scope(ADA).add([new("before")])
        monkeypatch.chdir(tmp_path / "else")
        store.scope(ADA).add([new("after")])
        assert store.scope(ADA).count() == 2
    assert list((tmp_path / "else").iterdir()) == []


@pytest.mark.parametrize("name", ["with space.db", "with?mark.db", "100%.db", "#hash.db", "ümläut.db"])
def test_paths_are_taken_literally(tmp_path: Path, name: str) -> None:
    for count in (1, 1):
        with Store.open(tmp_path / name, embedder=EMBEDDER) as store:
            store.scope(ADA).add([new("hello")])
            assert store.scope(ADA).count() == count
    assert (tmp_path / name).exists()


def test_an_empty_file_becomes_a_store(path: Path) -> None:
    path.touch()
    with Store.open(path, embedder=EMBEDDER) as store:
        store.scope(ADA).add([new("hello")])


def test_a_file_left_by_a_process_that_died_while_creating_it_becomes_a_store(path: Path) -> None:
    with closing(dbapi2.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
    assert path.stat().st_size > 0
    with Store.open(path, embedder=EMBEDDER) as store:
        store.scope(ADA).add([new("hello")])


def _a_store(path: Path) -> None:
    with Store.open(path, embedder=EMBEDDER) as store:
        store.scope(ADA).add([new(f"memory number {i}") for i in range(50)])


def _foreign_database(path: Path) -> None:
    with closing(dbapi2.connect(path)) as connection:
        connection.execute("CREATE TABLE accounts(id)")
        connection.commit()


def _text(path: Path) -> None:
    path.write_text("Dear diary, this is no database.\n" * 100)


def _truncated(path: Path) -> None:
    _a_store(path)
    os.truncate(path, path.stat().st_size // 2)


def _scrambled(path: Path) -> None:
    _a_store(path)
    content = bytearray(path.read_bytes())
    content[100:4096] = b"\xa5" * 3996
    path.write_bytes(content)


@pytest.mark.parametrize("spoil", [_foreign_database, _text, _truncated, _scrambled])
def test_what_is_no_store_is_refused_and_left_alone(path: Path, spoil) -> None:
    spoil(path)
    before = {p.name: p.read_bytes() for p in path.parent.iterdir() if p.is_file()}
    with pytest.raises(StoreOpenError, match=str(path)):
        Store.open(path, embedder=EMBEDDER)
    assert {p.name: p.read_bytes() for p in path.parent.iterdir() if p.is_file()} == before


def test_a_directory_and_a_missing_folder_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(StoreOpenError, match="is a directory"):
        Store.open(tmp_path)
    with pytest.raises(StoreOpenError, match="does not exist; create it first"):
        Store.open(tmp_path / "missing" / "memory.db")
    assert list(tmp_path.iterdir()) == []


def test_a_newer_schema_is_refused_and_left_alone(path: Path) -> None:
    _a_store(path)
    with closing(dbapi2.connect(path)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0999'")
        connection.commit()
    before = path.read_bytes()
    with pytest.raises(SchemaTooNew, match=r"schema 0999.*upgrade agentmem"):
        Store.open(path, embedder=EMBEDDER)
    assert path.read_bytes() == before


READ_ONLY = """
import os, sys
from agentmem.errors import StoreOpenError
from agentmem.store import Store
if os.geteuid() == 0:  # root may write anywhere
    os.setgid(65534); os.setuid(65534)
try:
    Store.open(sys.argv[1])
except StoreOpenError as error:
    print(error)
"""


@pytest.mark.parametrize("what", ["folder", "file"])
def test_read_only_places_are_refused(what: str) -> None:
    # Not tmp_path: another user could not enter it.
    folder = Path(tempfile.mkdtemp())
    try:
        _a_store(folder / "memory.db")
        before = (folder / "memory.db").read_bytes()
        (folder / "memory.db").chmod(0o444)
        folder.chmod(0o555 if what == "folder" else 0o777)
        process = python(READ_ONLY, folder / "memory.db")
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert "cannot be " in out
        assert (folder / "memory.db").read_bytes() == before
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


def test_an_sqlite_that_can_corrupt_stores_is_refused() -> None:
    check_driver((3, 51, 3))
    with pytest.raises(StoreOpenError, match=r"SQLite 3.51.2 .* 3.51.3 or newer is needed"):
        check_driver((3, 51, 2))


def test_the_schema_is_what_the_migrations_make(store: Store) -> None:
    def ours(name: str | None, kind: str, _parents: object) -> bool:
        return not (kind == "table" and name is not None and is_derived(name))

    with store.database.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "include_name": ours})
        assert compare_metadata(context, Base.metadata) == []
        assert context.get_current_revision() == HEAD


def test_head_is_the_newest_revision() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(agentmem.store.__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    scripts = ScriptDirectory.from_config(config)
    assert scripts.get_current_head() == HEAD
    revisions = [script.revision for script in scripts.walk_revisions()]
    assert revisions == sorted(revisions, reverse=True)


@pytest.mark.sqlite  # its pragmas
def test_connections_are_durable_and_erase_what_they_delete(store: Store) -> None:
    store.scope(ADA).add([new("something")])
    with store.database.read() as connection:
        value = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "secure_delete", "foreign_keys")
        }
        secure = connection.exec_driver_sql("SELECT v FROM fts_memory_1_config WHERE k = 'secure-delete'").scalar()
    assert value == {"journal_mode": "wal", "synchronous": 2, "secure_delete": 1, "foreign_keys": 1}
    assert secure == 1


def test_a_lock_that_is_held_for_too_long_is_reported(path: Path) -> None:
    _a_store(path)
    other = Database(path, 1.0)
    with Store.open(path, embedder=EMBEDDER, lock_timeout=0.1) as store:
        with other.lock(), pytest.raises(StoreBusy, match=r"held by another process for more than 0\.1 s"):
            store.scope(ADA).add([new("too late")])
        store.scope(ADA).add([new("now")])
        assert store.scope(ADA).count() == 51
    other.close()


def test_bad_arguments_of_open(path: Path) -> None:
    for embedder in (EmbedderId("", 3), EmbedderId("e", 0), EmbedderId("e", 9000), EmbedderId("e", 3, noise=0.0)):
        with pytest.raises(InvalidInput, match="an embedder needs"):
            Store.open(path, embedder=embedder)
    with pytest.raises(InvalidInput, match="space_kv_bytes"):
        EvictionPolicy(space_kv_bytes=-1)
    with pytest.raises(InvalidInput, match="half_life"):
        EvictionPolicy(half_life=EvictionPolicy().grace * 0)
    assert not path.exists()


def test_vectors_of_different_embedders_are_never_mixed(where: Where) -> None:
    text = "The lighthouse keeper counts ships."
    with Store.open(where, embedder=EMBEDDER) as store:
        (memory,) = store.scope(ADA).add([new(text)])
    other = EmbedderId("other", 4)
    probe = np_unit(4)
    with Store.open(where, embedder=other) as store:
        handle = store.scope(ADA)
        assert [p.text for p in store.pending_embeddings()] == [text]
        (hit,) = handle.search("lighthouse", probe, explain=True)
        assert hit.explain is not None
        assert hit.explain.dense is None  # the old vector says nothing to the new query
        assert handle.search("", probe, threshold=None) == []
        pending = store.pending_embeddings()
        assert store.put_embeddings([(pending[0], probe), (pending[0], probe)]) == 1
        assert store.put_embeddings([(pending[0], probe)]) == 0
        assert store.pending_embeddings() == []
        (hit,) = handle.search("", probe, threshold=None, explain=True)
        assert hit.memory.id == memory.id
        assert hit.explain is not None
        assert hit.explain.dense == pytest.approx(1.0)
        with pytest.raises(InvalidInput, match=r"shape \(4,\)"):
            handle.search("", embed(text))
        assert store.verify().ok
    with Store.open(where, embedder=EMBEDDER) as store:  # back: the first vectors are still there
        assert store.pending_embeddings() == []
        assert len(store.scope(ADA).search("", embed(text), threshold=None)) == 1


def np_unit(dim: int):
    vector = embed("x")[:dim].copy()
    return vector / (vector @ vector) ** 0.5


def test_pending_embeddings_of_changed_or_deleted_memories_are_passed_over(store: Store) -> None:
    handle = store.scope(ADA)
    kept, changed, gone = handle.add([new(text, embedding=None) for text in ("kept", "changed", "gone")])
    pending = store.pending_embeddings()
    assert [p.text for p in pending] == ["kept", "changed", "gone"]
    handle.update(changed.id, text="another", n_tokens=1)
    handle.delete(gone.id)
    assert store.put_embeddings([(p, embed(p.text)) for p in pending]) == 1
    assert [p.text for p in store.pending_embeddings()] == ["another"]
    assert [hit.memory.id for hit in handle.search("", embed("kept"), threshold=None)] == [kept.id]


def test_a_store_without_an_embedder_searches_words(where: Where) -> None:
    with Store.open(where) as store:
        handle = store.scope(ADA)
        handle.add([new("My dog is called Biscuit.", embedding=None)])
        assert len(handle.search("dogs")) == 1
        assert store.pending_embeddings() == []
        with pytest.raises(InvalidInput, match="without an embedder"):
            handle.search("dog", embed("dog"))
        with pytest.raises(InvalidInput, match="without an embedder"):
            handle.add([new("cat")])


def test_a_forked_child_opens_connections_of_its_own(where: Where) -> None:
    with Store.open(where, embedder=EMBEDDER) as store:
        handle = store.scope(ADA)
        (memory,) = handle.add([new("parent")])
        handle.record_uses([(memory.id, 0.5)], turn="t")
        child = os.fork()
        if child == 0:
            status = 1
            try:
                handle.add([new("child")])
                status = 0 if handle.get(memory.id).uses == 0 else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert handle.count() == 2
        assert handle.get(memory.id).uses == 1
        assert store.verify().ok


def test_history_of_nothing_is_not_found(store: Store) -> None:
    with pytest.raises(NotFound):
        store.scope(ADA).history("never")


def test_nobody_else_can_read_a_store(path: Path) -> None:
    with Store.open(path, embedder=EMBEDDER) as store:
        store.scope(ADA).add([new("My dog is called Biscuit.")])
        files = [file for file in path.parent.iterdir() if file.is_file()]
        assert {file.name for file in files} >= {"memory.db", "memory.db-wal"}
        assert {file.stat().st_mode & 0o077 for file in files} == {0}


_FIRST_WRITE = """
import os, sys
from pysqlite3 import dbapi2
store = dbapi2.connect(sys.argv[1], isolation_level=None)
store.executescript("PRAGMA cache_size=1; CREATE TABLE t(x); DROP TABLE t")
store.execute("BEGIN IMMEDIATE")
store.execute("CREATE TABLE t(x)")
for _ in range(50):
    store.execute("INSERT INTO t VALUES (zeroblob(4000))")
os.kill(os.getpid(), 9)
"""


def test_a_first_write_that_lost_power_is_rolled_back(path: Path) -> None:
    subprocess.run([sys.executable, "-c", _FIRST_WRITE, str(path)], check=False)
    journal, log = Path(f"{path}-journal"), Path(f"{path}-wal")
    assert journal.stat().st_size
    log.write_bytes(bytes(32))  # as the disk may have it: later calls first
    with Store.open(path, embedder=EMBEDDER) as store:
        store.scope(ADA).add([new("something")])
        assert store.verify().ok
    assert not journal.exists()
