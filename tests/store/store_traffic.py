"""Writers and readers of one store, all at once. Run as a process of its own:

    python store_traffic.py STORE FOLDER SECONDS WRITERS READERS

Writers add, attach, delete, and now and then close and open the store again; readers search, list, and keep KV in a
hot tier. No call may fail. What a delete has returned for is never served again, however hot it is elsewhere. Prints
what was done, and the longest call, as JSON.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from store_world import ADA, EMBEDDER, Where, attach, embed, new
from stream_world import pattern

from agentmem.store import Store
from agentmem.store.hot import HotTier

V = TypeVar("V")
SIZES = (2_000, 2_000, 300_000)


class Held:
    """KV in the hot tier."""

    def __init__(self, data: bytes | bytearray):
        self.data = data
        self.nbytes = len(data)


class Clock:
    """The longest call, and how many there were."""

    def __init__(self) -> None:
        self.calls, self.longest = 0, 0.0

    def __call__(self, call: Callable[[], V]) -> V:
        start = time.monotonic()
        value = call()
        self.calls, self.longest = self.calls + 1, max(self.longest, time.monotonic() - start)
        return value


def payload(id_: str) -> bytes:
    return pattern(SIZES[sum(id_.encode()) % 3], "traffic", id_)


def write(where: Where, number: int, end: float, gone: int) -> dict[str, object]:
    dice, clock, mine, counts = random.Random(number), Clock(), [], {"added": 0, "deleted": 0, "opened": 1}
    store = Store.open(where, embedder=EMBEDDER)
    while time.monotonic() < end or not counts["deleted"]:
        handle = store.scope(ADA)
        text = f"writer {number} says {counts['added']}"
        id_ = f"{number}-{counts['added']}"
        (memory,) = clock(lambda: handle.add([new(text, id=id_, session=f"s{number}")]))  # noqa: B023
        clock(lambda: attach(handle, memory, payload(id_)))  # noqa: B023
        counts["added"] += 1
        mine.append(id_)
        if len(mine) > 3 and dice.random() < 0.3:
            id_ = mine.pop(dice.randrange(len(mine)))
            clock(lambda: handle.delete(id_))  # noqa: B023
            os.write(gone, f"{id_}\n".encode())
            counts["deleted"] += 1
        if dice.random() < 0.1:
            store.close()
            store = clock(lambda: Store.open(where, embedder=EMBEDDER))
            counts["opened"] += 1
    store.close()
    return counts | {"calls": clock.calls, "longest": clock.longest, "left": mine}


def read(where: Where, number: int, end: float, log: Path) -> dict[str, object]:
    dice, clock = random.Random(1000 + number), Clock()
    hot: HotTier[Held] = HotTier(20_000_000)
    seen: list[str] = []
    honoured: set[str] = set()
    store = Store.open(where, embedder=EMBEDDER)
    handle = store.scope(ADA)
    while time.monotonic() < end or (not honoured and time.monotonic() < end + 60):
        gone = set(log.read_text().split("\n")[:-1])
        seen += [memory.id for memory in clock(lambda: handle.list(limit=50)) if memory.id not in seen]
        wanted = dice.sample(seen, min(20, len(seen)))
        digests = clock(lambda: handle.kv_digests(wanted, fingerprint="model-a"))  # noqa: B023
        assert not gone & set(digests), "KV of a deleted memory can be looked up"
        held = {id_: hot.get(ADA, id_, digest) for id_, digest in digests.items()}
        cold = [id_ for id_, value in held.items() if value is None]
        loaded = clock(lambda: handle.load_kv(cold, fingerprint="model-a"))  # noqa: B023
        assert loaded.damaged == ()
        for id_, found in loaded.payloads.items():
            assert found.data == payload(id_)
            hot.put(ADA, id_, found.sha256, Held(found.data))
        assert all(value is None or value.data == payload(id_) for id_, value in held.items())
        honoured |= {id_ for id_ in wanted if id_ in gone}
        query = f"writer {dice.randrange(8)} says"
        hits = clock(lambda: handle.search(query, embed(query), threshold=None))  # noqa: B023
        assert not gone & {hit.memory.id for hit in hits}, "a deleted memory was found"
        if hits and dice.random() < 0.2:
            handle.record_uses([(hits[0].memory.id, 0.5)], turn=f"{number} {clock.calls}")
            clock(store.flush_uses)
    store.close()
    return {"calls": clock.calls, "longest": clock.longest, "honoured": len(honoured)}


def main(where: Where, folder: Path, seconds: float, writers: int, readers: int) -> None:
    log = folder / "gone"
    gone = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    end = time.monotonic() + seconds
    children = {}
    for number in range(writers + readers):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                role = write(where, number, end, gone) if number < writers else read(where, number, end, log)
                (folder / f"result{number}").write_text(json.dumps(role))
                status = 0
            finally:
                if status:
                    traceback.print_exc()
                    sys.stderr.flush()
                os._exit(status)
        children[child] = number
    failed = [number for child, number in children.items() if os.waitpid(child, 0)[1]]
    assert failed == [], f"failed: {failed}"
    results = [json.loads((folder / f"result{number}").read_text()) for number in range(writers + readers)]
    left = {id_ for one in results[:writers] for id_ in one.pop("left")}
    with Store.open(where, embedder=EMBEDDER) as store:
        handle = store.scope(ADA)
        assert {memory.id for memory in handle.list(limit=1_000_000)} == left
        assert handle.count(tier="warm") == len(left)
        report = store.verify()
        assert report.ok, report.problems
    print(json.dumps({"writers": results[:writers], "readers": results[writers:]}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
