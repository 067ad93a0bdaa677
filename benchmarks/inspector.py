"""How long the inspector waits for what it asks: ``python -m benchmarks.inspector``.

A store of one user with many memories behind a real server; every call that a view of the page makes, over HTTP, again
and again in a new order each time. The calls read; nothing is written meanwhile.
"""

from __future__ import annotations

import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import httpx2
import numpy as np
import torch
import typer

from agentmem.evaluation.machine import describe
from agentmem.llm import MemoryLLM
from agentmem.records import Scope
from agentmem.server.app import make_app
from agentmem.server.limits import Limits
from agentmem.server.run import make_server
from agentmem.store import NewMemory
from benchmarks.population import BATCH, Population
from benchmarks.report import place_and_time, table

USER = "me"
PAGES = 3
"""The page of a list that is asked for by its cursor: one deep enough to have a cursor of its own."""


def fill(llm: MemoryLLM, memories: int) -> None:
    """Texts with the words of real dialogue; vectors at random, in the bundled model's own dimension."""
    population, handle = Population(0), llm.store.scope(Scope(user=USER))
    dice = np.random.default_rng(0)
    for session in range(-(-memories // BATCH)):
        made = population.batch(f"s{session}")[: memories - session * BATCH]
        vectors = dice.standard_normal((len(made), llm.store.embedder.dim), dtype=np.float32)  # type: ignore[union-attr]
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        handle.add([_with(one, vector) for one, vector in zip(made, vectors, strict=True)])


def _with(memory: NewMemory, vector: Any) -> NewMemory:
    return NewMemory(**{**vars(memory), "embedding": vector})


@contextmanager
def served(llm: MemoryLLM) -> Iterator[httpx2.Client]:
    """A client of a real server on this machine."""
    server = make_server(make_app(llm, limits=Limits(rate=None)), "127.0.0.1", 0)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()


def calls(http: httpx2.Client, words: str) -> dict[str, Callable[[], httpx2.Response]]:
    """What the page asks, by the name of what is looked at."""

    def listed(**params: Any) -> Callable[[], httpx2.Response]:
        return lambda: http.get("/v1/memories", params={"limit": 50, **params})

    cursor = None
    for _ in range(PAGES):
        cursor = http.get("/v1/memories", params={"limit": 50, **({"cursor": cursor} if cursor else {})}).json()[
            "next_cursor"
        ]
    search = {"query": words, "top_k": 50, "explain": True}
    prune = {"max_memories": 0, "listed": 10}
    return {
        "newest first": listed(),
        "a later page": listed(cursor=cursor),
        "by uses": listed(sort="-uses"),
        "by KV": listed(sort="-kv_bytes"),
        "by frequency": listed(sort="frequency"),
        "count": lambda: http.get("/v1/memories/count", params={"role": "user"}),
        "search": lambda: http.post("/v1/memories/search", json=search),
        "stats": lambda: http.get("/v1/memories/stats"),
        "activity": lambda: http.get("/v1/memories/activity"),
        "preview of pruning all": lambda: http.post("/v1/memories/prune", json=prune),
    }


def measure(memories: int, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each call, by its name."""
    took: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder, MemoryLLM(store=Path(folder) / "memory.db") as llm:
        fill(llm, memories)
        words = llm.memories(user=USER).list(limit=1)[0].text.split()[0]
        with served(llm) as http:
            asked = calls(http, words)
            for number in range(rounds + 1):
                for name in random.Random(number).sample(list(asked), len(asked)):
                    begun = time.perf_counter()
                    asked[name]().raise_for_status()
                    if number:  # the first round warms caches
                        took.setdefault(name, []).append(1000 * (time.perf_counter() - begun))
    return took


def main(
    memories: Annotated[int, typer.Option(help="Memories of the user.")] = 100_000,
    rounds: Annotated[int, typer.Option(help="Times that each call is made.")] = 20,
) -> None:
    """Measure, and print a table."""
    rows = []
    for name, times in measure(memories, rounds).items():
        low, middle, high = np.quantile(times, [0.05, 0.5, 0.95])
        rows.append([name, f"{middle:.0f}", f"{low:.0f}–{high:.0f}"])
    print(f"{memories:,} memories; {place_and_time(describe(torch.get_num_threads()))}\n")
    print(table(["call", f"median ms of {rounds}", "5 % to 95 %"], sorted(rows)))


if __name__ == "__main__":
    typer.run(main)
