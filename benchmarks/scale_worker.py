"""A fresh process on a store of many memories: ``open``, ``search`` or ``add``, each in figures of its own."""

from __future__ import annotations

import resource
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from agentmem.records import Scope
from agentmem.store import EmbedderId, Store
from benchmarks.population import BATCH, DIM, Population
from benchmarks.processes import emit

EMBEDDER = EmbedderId("population", DIM, noise=1 / DIM**0.5)


class Job(StrEnum):
    """What is measured."""

    FILL = "fill"
    SEARCH = "search"
    ADD = "add"


def peak_bytes() -> int:
    """Peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def fill(path: Path, users: dict[str, int], seed: int) -> None:
    """Add memories in batches, users in turns of chance in proportion to what they will have: as if all lived at once.

    Emits one line every tenth of the way.
    """
    people, dice = Population(seed), np.random.default_rng(seed)
    batches = np.repeat(np.arange(len(users)), [size // BATCH for size in users.values()])
    dice.shuffle(batches)
    names = list(users)
    with Store.open(path, embedder=EMBEDDER) as store:
        handles = [store.scope(Scope(user=name)) for name in names]
        tenth, seconds = max(1, len(batches) // 10), 0.0
        for number, user in enumerate(batches, 1):
            new = people.batch(f"session-{number}")
            start = time.perf_counter()
            handles[user].add(new)
            seconds += time.perf_counter() - start
            if number % tenth == 0:
                emit({"memories": number * BATCH, "per_second": tenth * BATCH / seconds, "rss": peak_bytes()})
                seconds = 0.0


def search(path: Path, users: dict[str, int], seed: int, repeats: int) -> None:
    """Open the store, then search the users' scopes in a new order each round, one query at a time."""
    people, dice = Population(seed), np.random.default_rng(seed)
    before = peak_bytes()
    start = time.perf_counter()
    with Store.open(path, embedder=EMBEDDER) as store:
        emit({"open_seconds": time.perf_counter() - start, "rss_before": before})
        handles = {name: store.scope(Scope(user=name)) for name in users}
        queries = {}
        for name, handle in handles.items():
            some = handle.list(limit=1000)
            texts = [some[at].text for at in dice.integers(len(some), size=repeats + 1)]
            queries[name] = iter(list(people.queries(texts)))
        for round_ in range(repeats + 1):
            for name in dice.permutation(list(users)).tolist():
                query = next(queries[name])
                row = {"user": name, "first": round_ == 0}
                for kind in dice.permutation(["hybrid", "lexical", "dense"]).tolist():
                    text = "" if kind == "dense" else query.text
                    vector = None if kind == "lexical" else query.vector
                    start = time.perf_counter()
                    handles[name].search(text, vector, top_k=8, threshold=None)
                    row[kind] = time.perf_counter() - start
                emit(row)
        emit({"rss": peak_bytes()})


def add(path: Path, users: dict[str, int], seed: int, repeats: int) -> None:
    """One turn of two chunks at a time, each a transaction that is safe on disk when it returns."""
    people = Population(seed)
    with Store.open(path, embedder=EMBEDDER) as store:
        for name in users:
            handle = store.scope(Scope(user=name))
            new = people.batch(f"added-{seed}")
            for at in range(0, min(2 * repeats, BATCH), 2):
                start = time.perf_counter()
                handle.add(new[at : at + 2])
                emit({"user": name, "add": time.perf_counter() - start})


def main(
    job: Job,
    path: Path,
    users: Annotated[list[str], typer.Argument(help="NAME=MEMORIES")],
    seed: int = 0,
    repeats: int = 100,
) -> None:
    """Do one job."""
    sizes = {name: int(size) for name, size in (user.split("=") for user in users)}
    if job is Job.FILL:
        fill(path, sizes, seed)
    elif job is Job.SEARCH:
        search(path, sizes, seed, repeats)
    else:
        add(path, sizes, seed, repeats)


if __name__ == "__main__":
    typer.run(main)
