"""Power loss: SIGKILL cannot see a missing fsync. What a store does to its files is noted, call by call, and the disk
that a power loss may leave is rebuilt after each: what was not synced is there, is gone, or is there in part.

The same replay must find a loss in stores that were made worse on purpose.
"""

from __future__ import annotations

import gzip
import os
import random
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from disk_model import DROPPED, KEPT, TORN, Disk
from disk_tap import Op, tapped
from power_world import Life, check, live
from store_world import EMBEDDER, found_in_files

from agentmem.errors import AgentMemError
from agentmem.store import Store, engine, payloads
from agentmem.store.payloads import PayloadFiles
from agentmem.store.stream_files import StreamFiles

STEP = int(os.environ.get("AGENTMEM_TEST_STATES_STEP", "23"))
"""Of the calls between two syncs, every so manieth is a moment of power loss: 1 for all."""
SYNCS = {"sync", "sync_folder", "mark"}


def record(folder: Path) -> tuple[Disk, list[Op], Life]:
    """A life of a store in ``folder / "store"``."""
    (folder / "elsewhere").mkdir()
    (folder / "store").mkdir(exist_ok=True)
    disk = Disk(folder / "store")
    with tapped(folder / "store") as tap:
        life = live(tap, folder / "store" / "memory.db", folder / "elsewhere")
    return disk, tap.ops, life


def replay(folder: Path, disk: Disk, ops: list[Op], life: Life, step: int, enough: int) -> list[str]:
    """Rebuild the disk after each call and check it. Returns what was found wrong, at most ``enough``."""
    dice, done, doing, wrong = random.Random(1), 0, False, []
    for number, op in enumerate(ops):
        disk.apply(op)
        if op[0] == "mark":
            doing = op[1].startswith("begin")
            done += not doing
        kinds = [DROPPED] if op[0] in SYNCS else []
        if number % step == 0:
            kinds += [KEPT, TORN]
        for what in kinds:
            disk.write_out(folder / "left", what, dice)
            allowed = {life.after[done], life.after[done + doing]}
            try:
                check(folder / "left" / "memory.db", allowed, life.gone[done])
            except (AssertionError, AgentMemError) as error:
                act = life.names[min(done, len(life.names) - 1)]
                wrong.append(f"call {number}, {op[:2]}, in {act!r}, {what}: {type(error).__name__}: {error}")
                if len(wrong) == enough:
                    return wrong
    assert done == len(life.names)
    return wrong


@pytest.mark.timeout(3600)
def test_a_power_loss_at_any_call_loses_nothing_and_tears_nothing(tmp_path: Path) -> None:
    disk, ops, life = record(tmp_path)
    assert {op[0] for op in ops} >= {"write", "sync", "sync_folder", "cut", "name", "rename", "unname", "folder"}
    assert replay(tmp_path, disk, ops, life, STEP, enough=3) == []


@pytest.mark.timeout(3600)
def test_a_power_loss_during_a_migration(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    packed = (Path(__file__).parent / "schema_0001.db.gz").read_bytes()
    (tmp_path / "store" / "memory.db").write_bytes(gzip.decompress(packed))
    disk, ops, life = record(tmp_path)
    ops = ops[: ops.index(("mark", "done add")) + 1]
    life.names = ["open", "add"]
    assert "written by the first schema" in life.after[0]
    assert replay(tmp_path, disk, ops, life, STEP, enough=3) == []


class _Forgetful:
    """``os``, but for fsync of files, or of folders."""

    def __init__(self, folders: bool):
        self._folders = folders

    def __getattr__(self, name: str) -> object:
        return getattr(os, name)

    def fsync(self, handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode) is not self._folders:
            os.fsync(handle)


def _row_before_file(patch: pytest.MonkeyPatch) -> None:
    late: list[tuple[PayloadFiles, str, bytes]] = []
    write, drain = PayloadFiles.write, Store.drain_trash

    def drain_late(store: Store) -> bool:
        for files, uri, data in late:
            write(files, [(uri, data)])
        late.clear()
        return drain(store)

    patch.setattr(PayloadFiles, "write", lambda self, many: late.extend((self, uri, bytes(data)) for uri, data in many))
    patch.setattr(Store, "drain_trash", drain_late)


def _pragma(value: str) -> Callable[[pytest.MonkeyPatch], None]:
    pragmas = (*(p for p in engine.PRAGMAS if not p.startswith("synchronous")), f"synchronous={value}")
    return lambda patch: patch.setattr(engine, "PRAGMAS", pragmas)


MUTANTS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], str]] = {
    "row before file": (_row_before_file, "a row names bytes that are not there"),
    "payload not synced": (
        lambda patch: patch.setattr(payloads, "os", _Forgetful(False)),
        "a row names bytes that are not there",
    ),
    "folder not synced": (
        lambda patch: patch.setattr(payloads, "os", _Forgetful(True)),
        "a row names bytes that are not there",
    ),
    "stream not synced": (lambda patch: patch.setattr(StreamFiles, "sync", lambda self: None), "stream"),
    "removal not synced": (
        lambda patch: patch.setattr(payloads, "_sync_nearest", lambda folder: None),
        "forgotten and back",
    ),
    "synchronous=NORMAL": (_pragma("NORMAL"), "not one of"),
    "synchronous=OFF": (_pragma("OFF"), ""),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_replay_finds_what_is_wrong_with(mutant: str, tmp_path: Path) -> None:
    spoil, message = MUTANTS[mutant]
    with pytest.MonkeyPatch.context() as patch:
        spoil(patch)
        # There is a folder to sweep, so the sweep is done for the day and does not clear up what is to be found.
        (tmp_path / "store" / "memory.db.kv").mkdir(parents=True)
        disk, ops, life = record(tmp_path)
    (wrong,) = replay(tmp_path, disk, ops, life, len(ops), enough=1)
    assert message in wrong


def test_bytes_that_are_gone_are_gone_from_the_disk(tmp_path: Path) -> None:
    """The control of the checks themselves: what was not forgotten is found in the files."""
    _, _, life = record(tmp_path)
    path = tmp_path / "store" / "memory.db"
    assert found_in_files(path, *life.gone[-1]) == []
    assert found_in_files(path, b"the bee has gone quiet", b"newthood") != []
    with Store.open(path, embedder=EMBEDDER) as store:
        assert store.verify().ok
