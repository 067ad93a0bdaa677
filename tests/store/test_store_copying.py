"""Copies of whole stores, between engines and back: the same rows, bytes, answers."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import servers
import sqlalchemy as sa
from store_world import ADA, BOB, EMBEDDER, Where, attach, embed, found_in_files, new
from typer.testing import CliRunner

from agentmem.cli import app
from agentmem.errors import InvalidInput
from agentmem.store import Store
from agentmem.store.copying import Copied, copy
from agentmem.store.payloads import INLINE_MAX
from agentmem.store.places import see_all
from agentmem.store.schema import Base

LARGE = bytes(range(256)) * (INLINE_MAX // 256 + 1)


def fill(where: Where) -> None:
    with Store.open(where, embedder=EMBEDDER) as store:
        for scope in (ADA, BOB):
            handle = store.scope(scope)
            memories = handle.add([new(f"{scope.user} owns apple {n}", session="s", tags=("é",)) for n in range(6)])
            handle.delete(memories[0].id)
            attach(handle, memories[1], b"small")
            attach(handle, memories[2], LARGE)
            handle.record_uses([(memories[3].id, 0.7)], turn="t")
            handle.pin(memories[4].id)


def content(where: Where) -> dict[str, list[dict[str, Any]]]:
    """Every row of every table, KV as its bytes wherever they are."""
    rows: dict[str, list[dict[str, Any]]] = {}
    with Store.open(where) as store, store.database.read() as connection:
        see_all(connection)
        for table in Base.metadata.sorted_tables:
            if table.name not in ("schema_meta", "kv_trash") and not table.name.startswith("stream"):
                query = sa.select(table).order_by(*table.primary_key)
                rows[table.name] = [dict(row) for row in connection.execute(query).mappings()]
        for row in rows["kv_payload"]:
            uri, data = row.pop("uri"), row.pop("data")
            row["bytes"] = bytes(data if uri is None else store.payloads.read(uri))
    rows["memory_tag"].sort(key=str)
    return rows


def test_from_a_file_to_postgres_and_back_nothing_changes(tmp_path: Path) -> None:
    first, last = tmp_path / "first.db", tmp_path / "last.db"
    fill(first)
    middle, bucket = servers.empty_database(), servers.empty_bucket()
    with Store.open(first) as source, Store.open(middle, kv_store=bucket) as target:
        steps: list[tuple[int, int]] = []
        assert copy(source, target, lambda *step: steps.append(step)) == Copied(10, 4, 0, 0)
        assert steps[-1][0] == steps[-1][1]
        with pytest.raises(InvalidInput, match="is not empty"):
            copy(source, target)
        assert target.verify().ok
    outcome = CliRunner().invoke(app, ["store", "copy", middle, str(last)])
    assert outcome.exit_code == 0, outcome.output
    assert content(first) == content(middle) == content(last)
    for where in (middle, last):
        with Store.open(where, embedder=EMBEDDER) as store:
            assert store.verify().ok
            handle = store.scope(ADA)
            assert handle.search("apple 3", embed("ada owns apple 3"))[0].memory.text == "ada owns apple 3"
            (memory,) = handle.add([new("written after the copy", session="s")])  # gets a key of its own
            assert handle.get(memory.id).text == "written after the copy"
    assert CliRunner().invoke(app, ["store", "migrate", middle]).exit_code == 0


def test_a_store_that_is_not_there_is_not_copied(tmp_path: Path) -> None:
    outcome = CliRunner().invoke(app, ["store", "copy", str(tmp_path / "none.db"), str(tmp_path / "new.db")])
    assert outcome.exit_code == 1
    assert not (tmp_path / "new.db").exists()


def test_damaged_kv_stays_behind_and_a_failed_copy_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "a.db")
    with Store.open(tmp_path / "a.db") as source, Store.open(tmp_path / "b.db") as target:
        assert source.files is not None
        assert target.files is not None
        (source.files.root / next(source.files.walk())).write_bytes(b"forged")

        def stop(done: int, total: int) -> None:
            if done == total:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            copy(source, target, stop)
        assert target.spaces() == []
        assert list(target.files.walk()) == []
        assert copy(source, target) == Copied(10, 3, 1, 0)
        assert target.verify().ok


def test_a_backup_can_be_taken_while_others_write(tmp_path: Path) -> None:
    path, backup = tmp_path / "memory.db", tmp_path / "backup.db"
    done, stop = [0], threading.Event()
    with Store.open(path, embedder=EMBEDDER) as store:
        handle = store.scope(ADA)

        def write() -> None:
            while not stop.is_set():
                (memory,) = handle.add([new(f"written meanwhile {done[0]}", id=str(done[0]))])
                attach(handle, memory, LARGE)
                done[0] += 1

        writer = threading.Thread(target=write)
        writer.start()
        while done[0] < 20:
            time.sleep(0.01)
        before = done[0]
        assert CliRunner().invoke(app, ["store", "copy", str(path), str(backup)], catch_exceptions=False).exit_code == 0
        after = done[0]
        stop.set()
        writer.join()
    assert after > before
    with Store.open(backup, embedder=EMBEDDER) as store:
        held = {memory.id for memory in store.scope(ADA).list(limit=1000)}
        assert held == {str(number) for number in range(len(held))}  # a snapshot: nothing without what came before
        assert before <= len(held) <= done[0]
        assert set(store.scope(ADA).load_kv(held, fingerprint="model-a").damaged) == set()
        assert store.verify().ok


def test_what_is_deleted_is_in_no_later_copy_or_export_and_leaves_an_earlier_one(tmp_path: Path) -> None:
    path, earlier, later = (tmp_path / f"{name}.db" for name in ("memory", "earlier", "later"))
    secret = b"the secret of the seventh drawer"
    with Store.open(path, embedder=EMBEDDER) as store:
        ada = store.scope(ADA)
        (memory,) = ada.add([new(secret.decode(), id="secret")])
        ada.add([new("nothing special", id="other")])
        attach(ada, memory, secret * 20_000)
        with Store.open(earlier) as backup:
            copy(store, backup)
        assert len(found_in_files(earlier, secret)) >= 2  # the control: text and KV are there
        assert ada.delete("secret").complete
        ada.export(tmp_path / "ada.jsonl", kv=True)
        with Store.open(later) as backup:
            copy(store, backup)
    for exported in tmp_path.glob("ada.*"):
        assert secret not in exported.read_bytes()
    assert found_in_files(later, secret) == []
    with Store.open(earlier, embedder=EMBEDDER) as backup:  # a backup is a store
        assert backup.scope(ADA).delete("secret").complete
        assert backup.scope(ADA).count() == 1
    assert found_in_files(earlier, secret) == []
