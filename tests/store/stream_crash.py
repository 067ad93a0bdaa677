"""Writers of a stream that are killed, and what must hold afterwards. Run as a process of its own:

    python stream_crash.py STORE FOLDER ROUNDS SEED

Each round forks two writers of one session (forked, because importing takes longer than the round), kills them at a
random moment, then opens the stream and compares every byte with what was committed. Prints counts as JSON.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from servers import wait_for_the_dead
from store_world import ADA, EMBEDDER, Where, new
from stream_world import INDEX, entry, open_stream, pattern, record

from agentmem.errors import StoreBusy, StreamChanged
from agentmem.store import ScopedMemories, Store, StoredStream
from agentmem.store.postgres.engine import is_postgres
from agentmem.store.verify import orphans

TAIL = 300_000


def write(where: Where, log: int) -> None:
    """Continue the stream, now and then taking records back or forgetting the session; say what was committed."""
    dice = random.Random(os.getpid())
    store = Store.open(where, embedder=EMBEDDER)
    handle = store.scope(ADA)
    while True:
        stream = open_stream(handle)
        assert stream.why_empty is None, stream.why_empty
        try:
            while dice.random() < 0.9:
                step(stream, dice, log)
        except (StoreBusy, StreamChanged):
            time.sleep(0.002)
        stream.close()
        if dice.random() < 0.03:
            os.write(log, b"forget\n")
            handle.delete([memory.id for memory in handle.add([new(f"secret {time.time()}", session="s")])])


def step(stream: StoredStream, dice: random.Random, log: int) -> None:
    meta = stream.meta or {"birth": dice.random(), "salts": [], "commits": 0}
    salts = meta["salts"]
    for _ in range(dice.randrange(4)):
        salt = dice.random()
        stream.append(record(len(salts), salt), entry(len(salts), salt))
        salts = [*salts, salt]
    if dice.random() < 0.1:
        stream.rollback()
        return
    meta = {"birth": meta["birth"], "salts": salts, "commits": meta["commits"] + 1}
    stream.commit(pattern(TAIL, meta["birth"], meta["commits"]), 128 * len(salts), meta)
    os.write(log, f"{meta['birth']} {meta['commits']}\n".encode())


def check(where: Where, commits: dict[float, int], forgot: bool) -> int:
    """The stream is that of the last commit, whole, or of one that a kill met. Returns how many records it has.

    ``commits`` are the numbers of the last commits that returned, by the birth of their stream.
    """
    if is_postgres(where):
        wait_for_the_dead(str(where))
    with Store.open(where, embedder=EMBEDDER) as store:
        with open_stream(store.scope(ADA)) as stream:
            assert stream.why_empty is None, stream.why_empty
            salts = stream.meta.get("salts", [])
            assert stream.n_records == len(salts)
            assert stream.n_tokens == 128 * len(salts)
            for number, salt in enumerate(salts):
                assert stream.read(number) == record(number, salt), number
            assert stream.index() == b"".join(entry(number, salt) for number, salt in enumerate(salts))
            assert len(stream.index()) == INDEX * len(salts)
            if stream.meta:
                birth, number = stream.meta["birth"], stream.meta["commits"]
                assert stream.tail() == pattern(TAIL, birth, number)
                assert number >= commits.get(birth, 0), "a commit that had returned is gone"
                assert number <= commits.get(birth, 0) + 2, "each writer can die before it says so, but once"
                commits[birth] = number
            assert forgot or stream.meta["birth"] in commits, "the stream is gone"
            count = stream.n_records
            keep_going(store.scope(ADA), stream)
        report = store.verify()
        assert report.ok, report.problems
        if store.files is not None:
            store.files.unlink(*orphans(store, 0.0))  # of streams that a killed writer was about to find dropped
    return count


def keep_going(handle: ScopedMemories, stream: StoredStream) -> None:
    """Appending after a kill works, and what was not committed then is gone."""
    before = stream.n_records
    stream.append(record(before, "more"), entry(before, "more"))
    assert stream.read(before) == record(before, "more")
    stream.rollback()
    assert stream.n_records == before


def main(where: Where, folder: Path, rounds: int, seed: int) -> None:
    dice = random.Random(seed)
    longest, total = 0, 0
    commits: dict[float, int] = {}
    for _ in range(rounds):
        writers: dict[int, Path] = {}
        for number in range(2):
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
        while not any(b" " in log.read_bytes() for log in writers.values()):
            assert time.monotonic() < deadline, "nobody commits"
            time.sleep(0.002)
        time.sleep(dice.uniform(0.0, 0.25))
        for child in dice.sample(list(writers), 2):
            os.kill(child, signal.SIGKILL)
            time.sleep(dice.choice([0.0, 0.003, 0.02]))
        forgot = False
        for child, log in writers.items():
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            assert status == -signal.SIGKILL, f"a writer failed by itself: {status}"
            lines = [line.split() for line in log.read_text().split("\n")[:-1]]
            forgot |= ["forget"] in lines
            for birth, number in (line for line in lines if len(line) == 2):
                commits[float(birth)] = max(int(number), commits.get(float(birth), 0))
                total += 1
        longest = max(longest, check(where, commits, forgot))
    print(json.dumps({"kills": 2 * rounds, "commits": total, "longest": longest}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
