"""Writers that are killed, and what must hold afterwards. Run as a process of its own:

    python store_crash.py STORE FOLDER ROUNDS SEED

Each round forks three writers (forked, because importing takes longer than the round), kills them at a random moment,
then opens the store and compares it with what the writers had acknowledged. Prints counts as JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
import sqlalchemy as sa
from servers import wait_for_the_dead
from store_world import ADA, EMBEDDER, Where, attach, embed, new

from agentmem.store import Store
from agentmem.store.places import see_all
from agentmem.store.postgres.engine import is_postgres
from agentmem.store.schema import Embedding, KVPayload, KVTrash, MemoryRow, Turn
from agentmem.store.sqlite_search import vec_table
from agentmem.store.verify import orphans

WRITERS = 3
SIZES = (3_000, 100_000, 400_000)  # two inline, one in a file


def text_of(turn: int, chunk: int) -> str:
    return f"turn{turn} chunk{chunk} some more words of turn{turn}"


def payload_of(turn: int, chunk: int) -> bytes:
    size = SIZES[(turn + chunk) % 3]
    return (hashlib.sha256(f"{turn}.{chunk}".encode()).digest() * (size // 32 + 1))[:size]


def chunks_of(turn: int) -> int:
    return 1 + turn % 4


def write(where: Where, log: int) -> None:
    """Add turns, attach KV, count uses, delete turns; say before and after each what was begun and what was done."""
    dice = random.Random(os.getpid())
    store = Store.open(where, embedder=EMBEDDER)
    handle = store.scope(ADA)
    mine: list[tuple[int, list[str]]] = []

    def say(word: str, turn: int) -> None:
        os.write(log, f"{word} {turn}\n".encode())

    while True:
        turn = int.from_bytes(os.urandom(6), "big")
        say("adding", turn)
        memories = handle.add(
            [
                new(text_of(turn, chunk), f"t{turn}", chunk_no=chunk, session=f"s{turn % 2}")
                for chunk in range(chunks_of(turn))
            ]
        )
        say("added", turn)
        mine.append((turn, [memory.id for memory in memories]))
        for memory in memories:
            attach(handle, memory, payload_of(turn, memory.chunk_no))
        say("attached", turn)
        handle.record_uses([(memory.id, 0.5) for memory in memories], turn=f"q{turn}")
        if len(mine) > 2 and dice.random() < 0.3:
            turn, ids = mine.pop(dice.randrange(len(mine)))
            say("deleting", turn)
            handle.delete(ids)
            say("deleted", turn)


def check(where: Where, said: dict[str, set[int]]) -> None:
    """What was acknowledged is there, nothing is torn, what was deleted stays away, indexes are in step."""
    if is_postgres(where):
        wait_for_the_dead(str(where))
    with Store.open(where, embedder=EMBEDDER) as store:
        report = store.verify()
        assert [p for p in report.problems if p.kind != "orphan_file"] == [], report.problems
        with store.database.read() as connection:
            see_all(connection)
            rows = connection.execute(
                sa.select(Turn.uid, MemoryRow.chunk_no, MemoryRow.text, MemoryRow.uid, Embedding.vec)
                .join(MemoryRow, MemoryRow.turn_id == Turn.id)
                .outerjoin(Embedding, Embedding.memory_id == MemoryRow.id)
            ).all()
            texts = "fts_memory" if is_postgres(where) else "fts_memory_1"
            counts = [
                connection.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar_one()
                for table in ("memory", "embedding", "memory_usage", texts, vec_table(1))
            ]
            assert counts == [len(rows)] * 5, counts
            assert connection.scalar(sa.select(sa.func.count()).select_from(KVTrash)) == 0
            kv_rows = connection.scalar(sa.select(sa.func.count()).select_from(KVPayload))
        turns: dict[int, list[sa.Row]] = {}
        for row in rows:
            turns.setdefault(int(row.uid[1:]), []).append(row)
        for turn, chunks in turns.items():
            assert turn in said["adding"]
            assert turn not in said["deleted"], f"turn {turn} came back"
            assert sorted(row.chunk_no for row in chunks) == list(range(chunks_of(turn))), f"turn {turn} is torn"
            for row in chunks:
                assert row.text == text_of(turn, row.chunk_no)
                assert np.array_equal(np.frombuffer(row.vec, "<f4"), embed(row.text))
        lost = said["added"] - said["deleting"] - set(turns)
        assert not lost, f"acknowledged and gone: {lost}"
        handle = store.scope(ADA)
        ids = {row[3]: (turn, row.chunk_no) for turn, chunks in turns.items() for row in chunks}
        loaded = handle.load_kv(ids, fingerprint="model-a")
        assert loaded.damaged == loaded.foreign == ()
        assert len(loaded.payloads) == kv_rows
        for id_, payload in loaded.payloads.items():
            assert payload.data == payload_of(*ids[id_])
        cold = {ids[id_][0] for id_ in loaded.missing}
        assert not cold & said["attached"], "acknowledged KV is gone"
        for turn in sorted(turns)[-3:]:
            found = {hit.memory.turn for hit in handle.search(f"turn{turn}", embed(text_of(turn, 0)))}
            assert f"t{turn}" in found
        for uri in orphans(store, 0.0):  # the sweep would leave them for an hour
            assert store.payloads is not None
            store.payloads.unlink(uri)


def main(where: Where, folder: Path, rounds: int, seed: int) -> None:
    dice = random.Random(seed)
    said: dict[str, set[int]] = {w: set() for w in ("adding", "added", "attached", "deleting", "deleted")}
    kills = 0
    for _ in range(rounds):
        writers: dict[int, Path] = {}
        for number in range(WRITERS):
            log = folder / f"log{number}"
            handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            child = os.fork()
            if child == 0:
                try:
                    write(where, handle)
                finally:
                    os._exit(1)
            os.close(handle)
            writers[child] = log
        deadline = time.monotonic() + 30
        while not all(b"added" in log.read_bytes() for log in writers.values()):
            assert time.monotonic() < deadline, "writers do not start"
            time.sleep(0.005)
        time.sleep(dice.uniform(0.0, 0.5))
        for child in dice.sample(list(writers), WRITERS):
            os.kill(child, signal.SIGKILL)
            time.sleep(dice.choice([0.0, 0.0, 0.003, 0.02]))
        for child, log in writers.items():
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            assert status == -signal.SIGKILL, f"a writer failed by itself: {status}"
            kills += 1
            for line in log.read_text().split("\n")[:-1]:
                word, turn = line.split()
                said[word].add(int(turn))
        check(where, said)
    print(json.dumps({"kills": kills} | {word: len(turns) for word, turns in said.items()}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
