"""A life of a store (``power_world``) that is killed, over and over. Run as a process of its own:

    python life_crash.py FOLDER KILLS SEED

Each time a child is forked that lives the whole life: a migration, writing, the time between text and KV, eviction,
rebuilding, pruning, import, repair, forgetting a scope. It is killed at a random moment of a random act; the store
then holds what it held before that act, or after it. Prints the number of kills per act as JSON.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

from power_world import POLICY, Held, acts, check, held
from store_world import EMBEDDER

from agentmem.store import Store

OPEN = "open"  # migrates


def begin(folder: Path) -> Path:
    """A store as the first schema left it."""
    folder.mkdir()
    path = folder / "memory.db"
    path.write_bytes(gzip.decompress((Path(__file__).parent / "schema_0001.db.gz").read_bytes()))
    return path


def plain(folder: Path) -> tuple[list[str], list[Held], list[float], list[list[bytes]]]:
    """Names of the acts, what is held before and after each, how long each takes, what each makes go."""
    path = begin(folder)
    start = time.monotonic()
    with Store.open(path, embedder=EMBEDDER, eviction=POLICY) as store:
        seconds = [time.monotonic() - start]
        names, after, gone = [OPEN], [held(store)] * 2, [[], []]
        for act in acts(store, folder):
            start = time.monotonic()
            act.do()
            seconds.append(time.monotonic() - start)
            names.append(act.name)
            after.append(held(store))
            gone.append([*gone[-1], *act.gone])
    return names, after, seconds, gone


def live(path: Path, log: int) -> None:
    os.write(log, f"begin {OPEN}\n".encode())
    store = Store.open(path, embedder=EMBEDDER, eviction=POLICY)
    os.write(log, f"done {OPEN}\n".encode())
    for act in acts(store, path.parent):
        os.write(log, f"begin {act.name}\n".encode())
        act.do()
        os.write(log, f"done {act.name}\n".encode())
    time.sleep(60)  # killed here when the act was quicker than the last time


def main(folder: Path, kills: int, seed: int) -> None:
    dice = random.Random(seed)
    names, after, seconds, gone = plain(folder / "plain")
    met: Counter[str] = Counter()
    for number in range(kills):
        path = begin(folder / str(number))
        log = folder / f"log{number}"
        handle = os.open(log, os.O_WRONLY | os.O_CREAT)
        child = os.fork()
        if child == 0:
            try:
                live(path, handle)
            finally:
                os._exit(1)
        os.close(handle)
        chosen = number % len(names)
        until = f"begin {names[chosen]}\n"
        deadline = time.monotonic() + 120
        while until not in log.read_text():
            assert time.monotonic() < deadline, f"{names[chosen]} does not begin"
            time.sleep(0.0005)
        time.sleep(dice.uniform(0.0, 1.2 * seconds[chosen]))
        os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status == -signal.SIGKILL, f"it failed by itself: {status}"
        lines = log.read_text().splitlines()
        done = sum(line.startswith("done") for line in lines)
        doing = lines[-1].startswith("begin")
        try:
            check(path, {after[done], after[done + doing]}, gone[done])
        except AssertionError as error:
            raise AssertionError(f"kill {number}, after {lines[-1]!r}: {error}") from error
        met[lines[-1]] += 1
    print(json.dumps(met))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
