"""Copies of whole stores, between engines and back: the same rows, bytes, answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import servers
import sqlalchemy as sa
from store_world import ADA, BOB, EMBEDDER, Where, attach, embed, new
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
            if table.name not in ("schema_meta", "kv_trash", "stream"):
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
