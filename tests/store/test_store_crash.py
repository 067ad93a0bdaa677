"""Real processes: killed at random moments, writing at once, deleting what another one holds, out of room."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from store_world import ADA, EMBEDDER, Where, attach, embed, files_of, finish, new, python

from agentmem.store import ScopedMemories, Store

KILLS = int(os.environ.get("AGENTMEM_TEST_KILLS", "21"))


def test_killed_writers_lose_nothing_and_tear_nothing(where: Where, tmp_path: Path) -> None:
    script = Path(__file__).parent / "store_crash.py"
    command = [sys.executable, *map(str, (script, where, tmp_path, KILLS // 3, 1))]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60 + 10 * KILLS)
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert counts["kills"] == KILLS // 3 * 3
    assert counts["added"] >= counts["kills"]


TWO_WRITERS = """
import os, sys
from store_world import *
from agentmem.store import Store

def work(name):
    with Store.open(sys.argv[1], embedder=EMBEDDER) as store:
        handle = store.scope(ADA)
        for number in range(40):
            (memory,) = handle.add([new(f"{name} says {number}", session="shared")])
            attach(handle, memory, (name * 1000).encode())
            handle.search(f"{name} says", embed(f"{name} says"))
            handle.record_uses([(memory.id, 0.25)], turn=f"{name} {number}")

children = []
for name in ("left", "right"):
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work(name)
            status = 0
        finally:
            os._exit(status)
    children.append(child)
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""


def test_two_processes_write_at_once(where: Where) -> None:
    finish(python(TWO_WRITERS, where))
    with Store.open(where, embedder=EMBEDDER) as store:
        handle = store.scope(ADA)
        assert {memory.text for memory in handle.list(limit=100)} == {
            f"{name} says {number}" for name in ("left", "right") for number in range(40)
        }
        assert handle.count(tier="warm") == 80
        assert handle.stats().uses == 80
        assert store.verify().ok


DELETER = """
import sys
from store_world import *
from agentmem.store import Store
with Store.open(sys.argv[1], embedder=EMBEDDER) as store:
    handle = store.scope(ADA)
    print(handle.delete(sys.argv[2]).complete)
    handle.update(sys.argv[3], text="The parrot is silent.", n_tokens=4, embedding=embed("The parrot is silent."))
"""


def test_a_delete_in_another_process_is_honoured_at_once(ada: ScopedMemories, where: Where) -> None:
    gone, changed = ada.add([new("The safe code is 4711."), new("The parrot sings.")])
    for memory in (gone, changed):
        attach(ada, memory, b"k" * 500)
    before = ada.kv_digests([gone.id, changed.id], fingerprint="model-a")
    assert set(before) == {gone.id, changed.id}
    assert finish(python(DELETER, where, gone.id, changed.id)) == f"{isinstance(where, Path)}\n"
    assert ada.count() == 1
    assert ada.search("safe code", embed("The safe code is 4711."), threshold=None)[0].memory.id == changed.id
    assert ada.kv_digests(before, fingerprint="model-a") == {}  # so nothing that is cached can be looked up
    assert ada.load_kv(before, fingerprint="model-a").payloads == {}
    assert ada.get(changed.id).text == "The parrot is silent."
    assert not attach(ada, gone, b"k" * 500)


NO_ROOM = """
import resource, sys
from store_world import *
from agentmem.errors import StoreError, StoreFull
from agentmem.store import Store
store = Store.open(sys.argv[1], embedder=EMBEDDER)
handle = store.scope(ADA)
(memory,) = handle.add([new("before")])
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
try:
    attach(handle, memory, b"k" * 2_000_000)
except StoreFull as error:
    print("attach:", error)
try:
    handle.add([new(f"{number} " + "words " * 1000) for number in range(200)])
except StoreError as error:
    print("add:", error)
print(handle.count(), handle.get(memory.id).kv_bytes)
handle.add([new("after")])
store.close()
"""


@pytest.mark.sqlite  # a limit on the size of its files
def test_no_room_for_files_or_rows_is_reported_and_rolled_back(path: Path) -> None:
    lines = finish(python(NO_ROOM, path)).splitlines()
    assert lines[0].startswith("attach: no room to write KV")
    assert lines[1].startswith("add: the disk refused")
    assert lines[2] == "1 0"
    assert [file.suffix for file in files_of(path) if file.parent != path.parent] == []
    with Store.open(path, embedder=EMBEDDER) as store:
        assert sorted(memory.text for memory in store.scope(ADA).list()) == ["after", "before"]
        assert store.verify().ok


READER = """
import sys
from store_world import *
from agentmem.store import Store
with Store.open(sys.argv[1], embedder=EMBEDDER) as store, store.database.read() as connection:
    connection.exec_driver_sql("SELECT count(*) FROM memory").scalar()  # a snapshot is held from here
    print("reading", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.sqlite  # PostgreSQL says so in any case
@pytest.mark.timeout(120)
def test_an_old_reader_delays_erasure_and_delete_says_so(ada: ScopedMemories, store: Store, path: Path) -> None:
    secret = "xylophone quartz zeppelin"
    (memory,) = ada.add([new(secret)])
    assert store.database.checkpoint()
    reader = python(READER, path, stdin=subprocess.PIPE)
    assert reader.stdout is not None
    assert reader.stdin is not None
    assert reader.stdout.readline() == "reading\n"
    forgotten = ada.delete(memory.id)
    assert forgotten.ids == (memory.id,)
    assert not forgotten.complete
    assert ada.search("xylophone", embed(secret), threshold=None) == []
    reader.communicate("done\n", timeout=60)
    assert reader.returncode == 0
    ada.add([new("the next write finishes it")])
    assert not any(secret.encode() in file.read_bytes() for file in files_of(path))
