"""A stream whose stored bytes were damaged by others, as files or as rows: found, said so, dropped, never used."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
import servers
from store_world import ADA, EMBEDDER
from stream_world import INDEX, RECORD, entry, extend, kept_bytes, open_stream, record, stored

from agentmem.errors import Closed, PayloadDamaged
from agentmem.store import ScopedMemories, Store
from agentmem.store.stream_files import PIECE


def stream_files(path: Path) -> dict[str, Path]:
    """The files of the only stream, by name; the tail as ``tail``."""
    files = {file.name.rpartition(".")[2]: file for file in Path(f"{path}.kv").glob("streams/*/*")}
    assert set(files) == {"records", "index", "tail"}
    return files


def _cut(name: str) -> Callable[[dict[str, Path]], None]:
    return lambda files: os.truncate(files[name], files[name].stat().st_size - 1)


def _flip(name: str, at: int) -> Callable[[dict[str, Path]], None]:
    def flip(files: dict[str, Path]) -> None:
        content = bytearray(files[name].read_bytes())
        content[at] ^= 1
        files[name].write_bytes(content)

    return flip


FILES = {
    "short records": (_cut("records"), "shorter"),
    "short index": (_cut("index"), "shorter"),
    "index": (_flip("index", 0), "its index is damaged"),
    "checksum in the index": (_flip("index", -1), "its index is damaged"),
    "tail": (_flip("tail", 7), "its tail is damaged"),
    "short tail": (_cut("tail"), "its tail is damaged"),
    "no tail": (lambda files: files["tail"].unlink(), "its tail is missing"),
    "no records": (lambda files: files["records"].unlink(), "its files are missing"),
    "no index": (lambda files: files["index"].unlink(), "its files are missing"),
}


def sql(statement: str) -> None:
    """As one whom no policy binds."""
    with psycopg.connect(servers.admin_address("memories"), autocommit=True) as admin:
        assert admin.execute(statement).rowcount


def _bit(table: str, column: str, at: str) -> str:
    return f"UPDATE {table} SET {column} = set_byte({column}, {at}, get_byte({column}, {at}) # 1)"


ROWS = {
    "no record": ("DELETE FROM stream_record WHERE number = 1", "some of its records are missing"),
    "no last record": ("DELETE FROM stream_record WHERE number = 2", "some of its records are missing"),
    "index": (_bit("stream_record", "entry", "0"), "its index is damaged"),
    "checksum in the index": (_bit("stream_record", "entry", "length(entry) - 1"), "its index is damaged"),
    "short index": ("UPDATE stream_record SET entry = substr(entry, 2) WHERE number = 2", "its index is damaged"),
    "tail": (_bit("stream_tail", "data", "7"), "its tail is damaged"),
    "short tail": ("UPDATE stream_tail SET data = substr(data, 2)", "its tail is damaged"),
    "no tail": ("DELETE FROM stream_tail", "its tail is damaged"),
}
RECORD_ROWS = {
    "record": _bit("stream_record", "data", str(RECORD - 1)) + " WHERE number = 1",
    "short record": "UPDATE stream_record SET data = substr(data, 2) WHERE number = 1",
    "lost object": "UPDATE stream_record SET data = NULL, uri = 'streams/1/0' WHERE number = 1",
}


def found_when_opened(store: Store, ada: ScopedMemories, spoil: Callable[[], None], why: str) -> None:
    stored(ada).close()
    assert store.verify().ok
    spoil()
    report = store.verify()
    assert [problem.kind for problem in report.problems] == ["stream"]
    assert why in report.problems[0].detail
    stream = open_stream(ada)
    assert stream.n_records == 0
    assert stream.why_empty is not None
    assert why in stream.why_empty
    assert store.verify().ok
    extend(stream, 2)
    stream.commit(b"anew", 256, {})
    assert open_stream(ada).read(1) == record(1)


def repaired(store: Store, ada: ScopedMemories, spoil: Callable[[], None], why: str) -> None:
    stored(ada).close()
    spoil()
    (problem,) = store.verify(repair=True).problems
    assert problem.repaired
    assert why in problem.detail
    assert kept_bytes(store) == 0
    assert store.verify().problems == ()
    assert open_stream(ada).why_empty is None


@pytest.mark.sqlite
@pytest.mark.parametrize("case", FILES)
def test_damaged_files_are_found_when_opened(store: Store, ada: ScopedMemories, path: Path, case: str) -> None:
    spoil, why = FILES[case]
    found_when_opened(store, ada, lambda: spoil(stream_files(path)), why)


@pytest.mark.postgresql
@pytest.mark.parametrize("case", ROWS)
def test_damaged_rows_are_found_when_opened(store: Store, ada: ScopedMemories, case: str) -> None:
    statement, why = ROWS[case]
    found_when_opened(store, ada, lambda: sql(statement), why)


@pytest.mark.sqlite
@pytest.mark.parametrize("case", [*FILES, "record"])
def test_repair_drops_a_stream_of_damaged_files(store: Store, ada: ScopedMemories, path: Path, case: str) -> None:
    spoil, why = FILES.get(case, (_flip("records", 2 * RECORD - 1), "record 1 does not match"))
    repaired(store, ada, lambda: spoil(stream_files(path)), why)


@pytest.mark.postgresql
@pytest.mark.parametrize("case", [*ROWS, *RECORD_ROWS])
def test_repair_drops_a_stream_of_damaged_rows(store: Store, ada: ScopedMemories, case: str) -> None:
    statement, why = ROWS.get(case) or (RECORD_ROWS[case], "record 1 does not match")
    repaired(store, ada, lambda: sql(statement), why)


def found_when_read(store: Store, ada: ScopedMemories, spoil: Callable[[], None], at: int) -> None:
    stored(ada).close()
    spoil()
    stream = open_stream(ada)
    assert stream.read(0) == record(0, "s")
    with pytest.raises(PayloadDamaged, match=r"record 1 .* open it again"):
        stream.read(1, at, 1)
    with pytest.raises(Closed, match="open it again"):
        stream.read(0)
    assert kept_bytes(store) == 0
    assert open_stream(ada).n_records == 0


@pytest.mark.sqlite
@pytest.mark.parametrize("at", [0, PIECE, RECORD - 1])
def test_a_damaged_record_is_found_when_it_is_read(store: Store, ada: ScopedMemories, path: Path, at: int) -> None:
    found_when_read(store, ada, lambda: _flip("records", RECORD + at)(stream_files(path)), at)


@pytest.mark.postgresql
@pytest.mark.parametrize("case", RECORD_ROWS)
def test_the_damaged_row_of_a_record_is_found_when_it_is_read(store: Store, ada: ScopedMemories, case: str) -> None:
    found_when_read(store, ada, lambda: sql(RECORD_ROWS[case]), RECORD - 1)


@pytest.mark.postgresql
def test_what_was_read_is_read_here_again_and_the_tail_is_checked(ada: ScopedMemories) -> None:
    stored(ada).close()
    stream = open_stream(ada)
    assert stream.read(1, 5, 7) == record(1, "s")[5:12]
    sql(RECORD_ROWS["lost object"])
    assert stream.read(1) == record(1, "s")
    sql(ROWS["tail"][0])
    with pytest.raises(PayloadDamaged, match="its tail"):
        stream.tail()


@pytest.mark.sqlite
def test_a_file_that_is_cut_under_an_open_stream_is_found(ada: ScopedMemories, path: Path) -> None:
    stream = stored(ada)
    os.truncate(stream_files(path)["records"], RECORD)
    assert stream.read(0) == record(0, "s")
    with pytest.raises(PayloadDamaged, match="record 2"):
        stream.read(2)
    for name, read in (("index", lambda s: s.index()), ("tail", lambda s: s.tail())):
        stream = stored(ada)
        _flip(name, 0)(stream_files(path))
        with pytest.raises(PayloadDamaged, match=f"its {name}"):
            read(stream)


@pytest.mark.sqlite  # a commit of rows leaves nothing behind
def test_what_a_crash_left_behind_the_last_commit_is_cut(store: Store, ada: ScopedMemories, path: Path) -> None:
    stored(ada).close()
    files = stream_files(path)
    for name in ("records", "index"):
        with files[name].open("ab") as file:
            file.write(b"of records that nobody committed" * RECORD)
    stray = files["tail"].with_name("0123.tail.tmp")
    stray.write_bytes(b"half a tail")
    assert store.verify().ok
    stream = open_stream(ada)
    assert stream.n_records == 3
    extend(stream, 1)
    assert not stray.exists()
    assert files["records"].stat().st_size == 4 * RECORD
    assert files["index"].stat().st_size == 4 * (INDEX + 3 * 4)
    stream.commit(b"tail", 1, {})
    again = open_stream(ada)
    assert again.read(3) == record(3)
    assert again.index()[-INDEX:] == entry(3)


def test_an_old_tail_that_a_crash_prevented_from_going_goes_at_open(path: Path) -> None:
    with Store.open(path, embedder=EMBEDDER) as store:
        stream = stored(store.scope(ADA))
        store.drain_trash = lambda: False  # type: ignore[method-assign]  # dies here
        stream.commit(b"newer", 1, {})
        assert len(list(Path(f"{path}.kv").glob("streams/*/*.tail"))) == 2
    with Store.open(path, embedder=EMBEDDER) as store:
        assert len(list(Path(f"{path}.kv").glob("streams/*/*.tail"))) == 1
        assert open_stream(store.scope(ADA)).tail() == b"newer"
