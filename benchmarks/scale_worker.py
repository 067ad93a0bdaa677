"""A fresh process on a store of many memories; each job prints figures of its own."""

from __future__ import annotations

import time
from contextlib import ExitStack
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from agentmem.records import Scope
from agentmem.store import EmbedderId, EvictionPolicy, ScopedMemories, Store
from benchmarks.population import BATCH, DIM, Population, Query
from benchmarks.processes import emit, memory_mark, resident

EMBEDDER = EmbedderId("population", DIM, noise=1 / DIM**0.5)
ROOMY = EvictionPolicy(total_memories=None)

Sizes = dict[str, int]


class Job(StrEnum):
    """What is done."""

    FILL = "fill"
    OPEN = "open"
    SEARCH = "search"
    MEMORY = "memory"
    """Search without taking times, in this store alone, for the peak of memory."""
    ADD = "add"
    EVICT = "evict"


def fill(path: str, users: Sizes) -> None:
    """Add memories in batches, each of a user drawn in proportion to what is still to come: as if all lived at once.

    Emits a line every tenth of the way.
    """
    people, dice = Population(1), np.random.default_rng(1)
    batches = np.repeat(np.arange(len(users)), [size // BATCH for size in users.values()])
    dice.shuffle(batches)
    with opened(path) as store:
        handles = [store.scope(Scope(user=name)) for name in users]
        tenth, seconds = max(1, len(batches) // 10), 0.0
        for number, user in enumerate(batches.tolist(), 1):
            new = people.batch(f"session-{number}")
            start = time.perf_counter()
            handles[user].add(new)
            seconds += time.perf_counter() - start
            if number % tenth == 0:
                emit({"memories": number * BATCH, "per_second": tenth * BATCH / seconds})
                seconds = 0.0


def ask(handle: ScopedMemories, repeats: int) -> list[Query]:
    """A query for each round, about memories of the scope."""
    some = handle.list(limit=1000)
    drawn = np.random.default_rng(2).integers(len(some), size=repeats)
    return list(Population(2).queries([some[at].text for at in drawn]))


def search(path: str, alone: list[Path], users: Sizes, repeats: int) -> None:
    """Search every user's scope in every store that holds it, in a new order each round."""
    dice = np.random.default_rng(3)
    with ExitStack() as stack:
        full = stack.enter_context(Store.open(path, embedder=EMBEDDER))
        scopes = [(name, "full", full.scope(Scope(user=name))) for name in users]
        for name, own in zip(users, alone, strict=bool(alone)):
            store = stack.enter_context(opened(own))
            scopes.append((name, "alone", store.scope(Scope(user=name))))
        queries = [ask(handle, repeats + 1) for _, _, handle in scopes]
        for number in range(repeats + 1):
            for at in dice.permutation(len(scopes)).tolist():
                name, store_name, handle = scopes[at]
                query = queries[at][number]
                row: dict[str, object] = {"user": name, "store": store_name, "first": number == 0}
                for kind in dice.permutation(["hybrid", "lexical", "dense"]).tolist():
                    text = "" if kind == "dense" else query.text
                    vector = None if kind == "lexical" else query.vector
                    start = time.perf_counter()
                    handle.search(text, vector, threshold=None)
                    row[kind] = time.perf_counter() - start
                emit(row)


def memory(path: str, users: Sizes, repeats: int) -> None:
    """Hybrid searches of each user's scope."""
    before = memory_mark()
    with opened(path) as store:
        for name in users:
            handle = store.scope(Scope(user=name))
            for query in ask(handle, repeats):
                handle.search(query.text, query.vector, threshold=None)
    emit({"rss_before": before, "rss": resident("VmHWM")})


def open_store(path: str) -> None:
    """Open and close."""
    start = time.perf_counter()
    with opened(path):
        emit({"seconds": time.perf_counter() - start})


def add(path: str, users: Sizes, repeats: int) -> None:
    """One turn of two chunks at a time: a transaction that is safe on disk when it returns."""
    people, session = Population(4), f"added {time.time_ns()}"
    with opened(path) as store:
        handles = {name: store.scope(Scope(user=name)) for name in users}
        for number in range(repeats):
            for name, handle in handles.items():
                emit({"user": name, "add": _add_turn(handle, people, f"{session}-{number}")})


def evict(path: str, users: Sizes) -> None:
    """The same when the store is full: room is made for some hundred memories, then for none until they are there."""
    people, session = Population(5), f"evicting {time.time_ns()}"
    with opened(path) as store:
        held = store.stats().memories
    with opened(path, EvictionPolicy(total_memories=held, grace=timedelta(0))) as store:
        handle = store.scope(Scope(user=next(iter(users))))
        seconds = _add_turn(handle, people, session)
        emit({"seconds": seconds, "evicted": held + 2 - store.stats().memories})


def opened(path: str | Path, policy: EvictionPolicy = ROOMY) -> Store:
    """The store, by default without a limit to its memories."""
    return Store.open(path, embedder=EMBEDDER, eviction=policy)


def _add_turn(handle: ScopedMemories, people: Population, session: str) -> float:
    new = people.batch(session)[:2]
    start = time.perf_counter()
    handle.add(new)
    return time.perf_counter() - start


def main(
    job: Job,
    path: Annotated[str, typer.Argument(help="A file, or the address of a PostgreSQL database.")],
    users: Annotated[list[str], typer.Argument(help="NAME=MEMORIES")],
    others: Annotated[int, typer.Option(help="More users, of --size memories each.")] = 0,
    size: int = 1000,
    alone: Annotated[list[Path] | None, typer.Option(help="For each user, a store without others; or none.")] = None,
    repeats: int = 100,
) -> None:
    """Do one job."""
    sizes = {name: int(count) for name, count in (user.split("=") for user in users)}
    if job is Job.FILL:
        fill(path, sizes | {f"other-{number}": size for number in range(others)})
    elif job is Job.OPEN:
        open_store(path)
    elif job is Job.SEARCH:
        search(path, alone or [], sizes, repeats)
    elif job is Job.MEMORY:
        memory(path, sizes, repeats)
    elif job is Job.ADD:
        add(path, sizes, repeats)
    else:
        evict(path, sizes)


if __name__ == "__main__":
    typer.run(main)
