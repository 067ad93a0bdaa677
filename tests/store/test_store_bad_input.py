"""What a store may meet: cut files, KV removed by hand, clocks that are set back, disks that refuse what follows a
commit."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from store_world import ADA, EMBEDDER, Where, attach, embed, new
from stream_world import open_stream, stored

from agentmem.errors import StoreError
from agentmem.store import EvictionPolicy, ScopedMemories, Store, inputs
from agentmem.store import payloads as payload_files

LARGE = b"k" * 300_000


def _whole_folder(folder: Path) -> None:
    shutil.rmtree(folder)


def _every_file(folder: Path) -> None:
    for file in [file for file in folder.rglob("*") if file.is_file()]:
        file.unlink()


def _unreadable(folder: Path) -> None:
    for file in [file for file in folder.rglob("*.kv") if file.is_file()]:
        file.unlink()
        file.mkdir()  # reading it fails with an error of its own, also for root


@pytest.mark.parametrize("remove", [_whole_folder, _every_file, _unreadable])
def test_kv_that_was_removed_by_hand_is_made_anew(
    remove: Callable[[Path], None], store: Store, ada: ScopedMemories, path: Path
) -> None:
    (memory,) = ada.add([new("The safe code is 4711.", session="s")])
    attach(ada, memory, LARGE)
    stored(ada).close()
    remove(Path(f"{path}.kv"))
    assert ada.load_kv([memory.id], fingerprint="model-a").damaged == (memory.id,)
    assert ada.search("safe code", embed("safe code"), threshold=None)[0].memory.id == memory.id
    if remove is not _unreadable:
        with open_stream(ada) as stream:
            assert stream.n_records == 0
            assert stream.why_empty == "its files are missing"
    assert {problem.kind for problem in store.verify(repair=True).problems} >= {"payload_file"}
    assert ada.get(memory.id).kv_bytes == 0
    assert attach(ada, memory, LARGE)
    assert ada.load_kv([memory.id], fingerprint="model-a").payloads[memory.id].data == LARGE


@pytest.mark.parametrize("keep", [0.001, 0.05, 0.3, 0.6, 0.95])
def test_a_file_that_was_cut_anywhere_is_refused_or_reported(keep: float, path: Path) -> None:
    with Store.open(path, embedder=EMBEDDER) as store:
        store.scope(ADA).add([new(f"memory number {i} " + "word " * 200, id=str(i)) for i in range(60)])
    os.truncate(path, int(path.stat().st_size * keep))
    assert _what_is_wrong(path) != []


def _what_is_wrong(path: Path) -> list[str]:
    try:
        with Store.open(path, embedder=EMBEDDER) as store:
            return [problem.kind for problem in store.verify().problems]
    except StoreError as error:
        return [str(error)]


def test_a_log_without_its_database_is_no_store_with_memories(path: Path) -> None:
    with Store.open(path, embedder=EMBEDDER) as store:
        store.scope(ADA).add([new("in the log only")])
        log = Path(f"{path}-wal").read_bytes()
    path.unlink()
    Path(f"{path}-wal").write_bytes(log)  # SQLite removes a log that belongs to another database
    with Store.open(path, embedder=EMBEDDER) as store:
        assert store.scope(ADA).count() == 0
        assert store.verify().ok


# ------------------------------------------------------------------------------------------------------------ the clock


def test_a_clock_that_is_set_back_keeps_order_counts_and_audit(ada: ScopedMemories, clock: list[timedelta]) -> None:
    (early,) = ada.add([new("written when the clock was right", session="s")])
    clock[0] = -timedelta(days=400)
    (late,) = ada.add([new("written after the clock was set back", session="s")])
    ada.record_uses([(early.id, 0.5), (late.id, 0.5)], turn="q")
    assert [memory.id for memory in ada.list(sort="created_at")] == [late.id, early.id]  # as dated
    assert {memory.uses for memory in ada.list()} == {1}
    assert all(0 < memory.frequency <= 2.5 for memory in ada.list())
    ada.pin(early.id)
    assert [event.action for event in ada.history(early.id)] == ["added", "pinned"]  # as it happened
    clock[0] = timedelta(0)
    ada.record_uses([(early.id, 0.5)], turn="q2")
    assert ada.get(early.id).uses == 2


def test_memories_of_the_future_are_not_new_for_ever(where: Where, clock: list[timedelta]) -> None:
    policy = EvictionPolicy(space_memories=4, grace=timedelta(hours=1))
    with Store.open(where, embedder=EMBEDDER, eviction=policy) as store:
        ada = store.scope(ADA)
        clock[0] = timedelta(days=3650)
        ada.add([new(f"dated in ten years {i}", id=f"future{i}") for i in range(4)])
        clock[0] = timedelta(0)
        ada.add([new(f"written today {i}", id=f"today{i}") for i in range(3)])
        assert {memory.id for memory in ada.list()} >= {"today0", "today1", "today2"}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[timedelta]:
    """By how much the clock is wrong."""
    wrong, right = [timedelta(0)], inputs.now_us
    for name, module in list(sys.modules.items()):
        if name.startswith("agentmem.store") and hasattr(module, "now_us"):
            monkeypatch.setattr(module, "now_us", lambda: right() + wrong[0] // timedelta(microseconds=1))
    return wrong


# ------------------------------------------------------------------------------------------------- after a commit


def test_what_follows_a_commit_does_not_make_it_look_like_a_failure(
    store: Store, ada: ScopedMemories, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (memory,) = ada.add([new("The safe code is 4711.")])
    attach(ada, memory, LARGE)

    def refuse(folder: Path) -> None:
        raise PermissionError(13, "Permission denied", str(folder))

    with monkeypatch.context() as patch:
        patch.setattr(payload_files, "_sync_nearest", refuse)
        forgotten = ada.delete(memory.id)
    assert forgotten.ids == (memory.id,)
    assert not forgotten.complete
    assert ada.count() == 0
    store.close()
    with Store.open(path, embedder=EMBEDDER) as again:
        assert again.verify().ok
        with again.database.read() as connection:
            assert connection.exec_driver_sql("SELECT count(*) FROM kv_trash").scalar() == 0


@pytest.mark.parametrize("where", ["lock", "database"])
def test_a_file_that_cannot_be_opened_is_a_store_error(where: str, path: Path) -> None:
    if where == "lock":
        Path(f"{path}.lock").mkdir()
    else:
        path.symlink_to(path.parent / "no" / "where")
    with pytest.raises(StoreError, match="cannot"):
        Store.open(path, embedder=EMBEDDER)
