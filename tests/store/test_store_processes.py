"""Many processes on one file, lives that are killed, and two versions of agentmem at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from pysqlite3 import dbapi2
from store_world import ADA, EMBEDDER, Where, attach, finish, new, python

from agentmem.errors import SchemaTooNew
from agentmem.store import ScopedMemories, Store
from agentmem.store.opening import HEAD

SECONDS = float(os.environ.get("AGENTMEM_TEST_SECONDS", "4"))
KILLS = int(os.environ.get("AGENTMEM_TEST_KILLS", "21"))
HERE = Path(__file__).parent


def run(script: str, *arguments: object, timeout: float) -> str:
    command = [sys.executable, str(HERE / script), *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=timeout)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.timeout(3600)
def test_eight_writers_and_eight_readers_are_never_refused(where: Where, tmp_path: Path) -> None:
    counts = json.loads(run("store_traffic.py", where, tmp_path, SECONDS, 8, 8, timeout=200 + 3 * SECONDS))
    assert all(one["deleted"] for one in counts["writers"])
    assert all(one["calls"] for one in counts["readers"])
    assert sum(one["opened"] for one in counts["writers"]) > 8
    assert sum(one["honoured"] for one in counts["readers"]) > 0


@pytest.mark.timeout(3600)
def test_a_life_that_is_killed_is_as_before_or_after_the_act(tmp_path: Path) -> None:
    met = json.loads(run("life_crash.py", tmp_path, KILLS, 1, timeout=100 + 10 * KILLS))
    assert sum(met.values()) == KILLS


OPENERS = """
import os, sys
from store_world import *
from agentmem.store import Store
children = []
for number in range(8):
    child = os.fork()
    if child == 0:
        status = 1
        try:
            for turn in range(6):
                with Store.open(sys.argv[1], embedder=EMBEDDER) as store:
                    store.scope(ADA).add([new(f"{number} at {turn}")])
            status = 0
        finally:
            os._exit(status)
    children.append(child)
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""


def test_eight_processes_create_open_and_close_a_store_at_once(where: Where) -> None:
    finish(python(OPENERS, where))
    with Store.open(where, embedder=EMBEDDER) as store:
        assert store.scope(ADA).count() == 48
        assert store.verify().ok


def test_an_old_process_does_not_write_what_a_newer_one_has_migrated(
    store: Store, ada: ScopedMemories, path: Path
) -> None:
    (memory,) = ada.add([new("The old process wrote this.")])
    attach(ada, memory, b"k" * 500)
    with closing(dbapi2.connect(path)) as newer:
        newer.executescript("BEGIN; CREATE TABLE of_the_future(x); UPDATE alembic_version SET version_num='0999'; END")
    with pytest.raises(SchemaTooNew, match=f"schema 0999, this process knows up to {HEAD}.*restart the process"):
        ada.add([new("This would be half a memory.")])
    with pytest.raises(SchemaTooNew):
        ada.delete(memory.id)
    ada.record_uses([(memory.id, 0.5)], turn="q")
    assert ada.get(memory.id).uses == 0  # reading goes on; the use waits
    assert [hit.memory.id for hit in ada.search("old process", threshold=None)] == [memory.id]
    assert ada.load_kv([memory.id], fingerprint="model-a").payloads[memory.id].data == b"k" * 500
    with pytest.raises(SchemaTooNew, match=r"schema 0999.*upgrade agentmem"):
        Store.open(path, embedder=EMBEDDER)


def test_a_change_of_schema_by_an_equal_is_no_reason_to_refuse(ada: ScopedMemories, where: Where) -> None:
    ada.add([new("before")])
    with Store.open(where, embedder=EMBEDDER) as other:
        other.rebuild_indexes()
    ada.add([new("after")])
    assert ada.count() == 2
