"""A million memories in one file: ``python -m benchmarks.scale``.

Three users have 1,000, 10,000 and 100,000 memories; all others have 1,000 each. What they wrote lies mixed, as if all
had lived at once. The same three are searched in the full store and in stores that hold nobody else, all in one
process in turns, so that the ratios say what a million others cost. KV is left out: it is in the same file or in files
of its own, and no search touches it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from agentmem.evaluation.figures import spread
from agentmem.evaluation.machine import describe
from benchmarks.machine import console
from benchmarks.population import BATCH, DIM
from benchmarks.processes import lines_of

WORKER = "benchmarks.scale_worker"
PROBES = "1000,10000,100000"
EVERYBODY_ELSE = 1000
"""Memories of each other user."""
KINDS = ("hybrid", "dense", "lexical")
HEAD = ["scope", "store", *KINDS]

Figures = dict[str, Any]


def worker(*arguments: str) -> Iterator[dict[str, Any]]:
    """Lines of a process with one thread."""
    return lines_of(WORKER, *arguments, threads=1)


def named(sizes: list[int]) -> list[str]:
    """The users whose scopes are searched, as arguments: who, and how many memories they have."""
    return [f"user-{size}={size}" for size in sizes]


def fill(path: Path, users: list[str], others: int, progress: Progress) -> Figures:
    """Write a store through ``add``, and report the rates."""
    task, rates = progress.add_task(path.stem, total=10), []
    for line in worker("fill", str(path), *users, f"--others={others}", f"--size={EVERYBODY_ELSE}"):
        rates.append(line)
        progress.advance(task)
    return {"per_second": [round(line["per_second"]) for line in rates]}


def percentiles(seconds: list[float]) -> Figures:
    """Median, quartiles and the 95th percentile."""
    return {**spread(seconds), "p95": float(np.percentile(seconds, 95))}


def searched(lines: list[dict[str, Any]]) -> list[Figures]:
    """Rows of ``worker search`` by scope, the first round left out: nothing is in the page cache yet."""
    rows = [line for line in lines if "user" in line and not line["first"]]
    return [
        {"user": user, "store": store} | {kind: percentiles([r[kind] for r in own]) for kind in KINDS}
        for user, store in sorted({(row["user"], row["store"]) for row in rows}, key=by_size)
        for own in [[row for row in rows if (row["user"], row["store"]) == (user, store)]]
    ]


def by_size(scope: tuple[str, str]) -> tuple[int, str]:
    """Scopes by their number of memories."""
    user, store = scope
    return int(user.partition("-")[2]), store


def added(lines: list[dict[str, Any]]) -> list[Figures]:
    """Rows of ``worker add`` by scope."""
    return [
        {"user": user, "add": percentiles([line["add"] for line in lines if line["user"] == user])}
        for user in dict.fromkeys(line["user"] for line in lines)
    ]


@contextmanager
def place(keep: Path | None) -> Iterator[Path]:
    """The folder of the stores: one that stays, or one that goes."""
    with ExitStack() as stack:
        if keep is None:
            yield Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="agentmem-scale-")))
        else:
            keep.mkdir(parents=True, exist_ok=True)
            yield keep.resolve()


def measure(folder: Path, sizes: list[int], memories: int, repeats: int, progress: Progress) -> Figures:
    """Fill what is missing, then open, search and add."""
    users, full, filled = named(sizes), folder / "full.db", folder / "fill.json"
    if not filled.exists():
        rates = fill(full, users, (memories - sum(sizes)) // EVERYBODY_ELSE, progress)
        filled.write_text(json.dumps(rates), encoding="utf-8")
    result: Figures = {"fill": json.loads(filled.read_text(encoding="utf-8"))}
    alone = []
    for user, size in zip(users, sizes, strict=True):
        alone.append(folder / f"alone-{size}.db")
        if not alone[-1].exists():
            fill(alone[-1], [user], 0, progress)
    task = progress.add_task("searching", total=repeats * len(sizes) * 2)
    lines = []
    for line in worker("search", str(full), *users, *(f"--alone={path}" for path in alone), f"--repeats={repeats}"):
        lines.append(line)
        progress.advance(task)
    result["search"] = searched(lines)
    opens = [next(worker("open", str(full), *users)) for _ in range(5)]
    result["open_seconds"] = spread([line["seconds"] for line in opens])
    one = list(worker("memory", str(full), *users, f"--repeats={repeats}"))[-1]
    result |= {"rss_bytes": one["rss"], "rss_before_bytes": one["rss_before"]}
    result["add"] = added(list(worker("add", str(full), *users, f"--repeats={repeats}")))
    result["evict"] = next(worker("evict", str(full), *users))
    result["file_bytes"] = full.stat().st_size
    return result


def show(result: Figures, screen: Console) -> None:
    """Print the report as a table."""
    table = Table(title=f"{result['memories']:,} memories: ms per search, p50 (p95)")
    for name in HEAD:
        table.add_column(name, justify="left" if name in HEAD[:2] else "right", no_wrap=True)
    for row in result["search"]:
        table.add_row(*cells(row))
    screen.print(table)
    for row in result["add"]:
        screen.print(f"{row['user']} adds a turn in {ms(row['add'])} ms")
    screen.print(f"and {1000 * result['evict']['seconds']:.0f} ms when {result['evict']['evicted']} have to go")
    screen.print(f"opened in {1000 * result['open_seconds']['median']:.0f} ms; {result['file_bytes'] / 2**30:.2f} GiB")


def cells(row: Figures) -> list[str]:
    """A scope's row under ``HEAD``."""
    return [row["user"], row["store"], *(ms(row[kind]) for kind in KINDS)]


def ms(figure: Figures) -> str:
    """p50 (p95) in milliseconds."""
    return f"{1000 * figure['median']:.1f} ({1000 * figure['p95']:.1f})"


def main(
    memories: Annotated[int, typer.Option(help="In all.")] = 1_000_000,
    probes: Annotated[str, typer.Option(help="Memories of the users who are searched, separated by commas.")] = PROBES,
    repeats: Annotated[int, typer.Option(min=5, help="Searches of each scope, and turns that are added.")] = 100,
    out: Annotated[Path, typer.Option(help="JSON report to write.")] = Path("scale.json"),
    keep: Annotated[Path | None, typer.Option(help="Folder of the stores; what is there is not filled again.")] = None,
) -> None:
    """Measure search, add and open in a store of many memories."""
    sizes = sorted({int(size) for size in probes.split(",")})
    if sizes[0] < BATCH or sum(sizes) > memories:
        raise typer.BadParameter(f"probes have from {BATCH} memories, and not more than {memories} together: {sizes}")
    screen = console()
    columns = (TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with place(keep) as folder, Progress(*columns, console=screen, disable=not screen.is_terminal) as progress:
        figures = measure(folder, sizes, memories, repeats, progress)
    result = {
        "benchmark": "scale",
        "command": f"python -m benchmarks.scale --memories {memories} --probes {probes} --repeats {repeats}",
        "machine": describe(1),
        "memories": memories,
        "dim": DIM,
        **figures,
    }
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    show(result, screen)


if __name__ == "__main__":
    typer.run(main)
