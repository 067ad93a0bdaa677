"""Write the figures of JSON reports into RESULTS.md: ``python -m benchmarks.report recall.json turn_latency.json``.

A report goes to the place that ``--place`` names, if it is given: ``--place "passkey one"``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

import benchmarks.agent_loop
import benchmarks.batch_decode
import benchmarks.eviction
import benchmarks.scale
import benchmarks.scale_postgres
import benchmarks.server_load
import benchmarks.tool_calls
import benchmarks.warm_load
from agentmem.evaluation.result import Result
from benchmarks.scripts import GROUPS
from benchmarks.turn_latency import cells

RESULTS = Path(__file__).with_name("RESULTS.md")
GROUP_FIGURES = ("known_exact", "known_contained", "known_value_read", "corrected_exact", "unknown_abstained")


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows])


def origin(report: dict[str, Any]) -> str:
    """Command, date and machine."""
    return f"    {report['command']}\n\n{place_and_time(report['machine'])} Model: {report['model']}."


def place_and_time(machine: dict[str, Any]) -> str:
    """Date, machine and versions."""
    gpu = f", {machine['gpu']}" if machine["gpu"] else ""
    return (
        f"{machine['date'][:10]}; {machine['cpu']}, {machine['threads']} of {machine['cores']} cores{gpu}; "
        f"Python {machine['python']}, torch {machine['torch']}, transformers {machine['transformers']}, "
        f"sqlite-vec {machine['sqlite-vec']}."
    )


def recall(report: dict[str, Any]) -> str:
    """The recall benchmark as Markdown."""
    rows = []
    for name, figure in report["rates"].items():
        verdict = report["targets"].get(name)
        aim = (
            f"{verdict['direction']} {verdict['target']:.0%}: {'met' if verdict['passed'] else 'NOT met'}"
            if verdict
            else ""
        )
        interval = f"{figure['low']:.1%} to {figure['high']:.1%}"
        rows.append([name.replace("_", " "), f"{figure['rate']:.1%}", interval, str(figure["n"]), aim])
    groups = [
        [
            group,
            *(
                f"{report['by_group'][group][name]['rate']:.1%} of {report['by_group'][group][name]['n']}"
                for name in GROUP_FIGURES
            ),
        ]
        for group in GROUPS
    ]
    seconds, store, attention, held = (
        report[name] for name in ("seconds_per_turn", "store", "attention", "memories_per_user")
    )
    return "\n\n".join(
        [
            origin(report),
            table(["figure", "rate", "95 % interval (Wilson)", "questions", "target"], rows),
            table(["group", *(name.replace("_", " ") for name in GROUP_FIGURES)], groups),
            f"{report['dialogues']} users with {held['min']} to {held['max']} memories each before they are asked, in "
            f"one store: {store['memories']} memories, {store['file_bytes'] / 2**20:.1f} MiB, of which KV "
            f"{store['kv_bytes'] / 2**20:.1f} MiB. {report['top_k']} memories are read at once. The memories that hold "
            f"the value receive {attention['right_memories']:.2f} of the attention, all memories together "
            f"{attention['all_memories']:.2f}.",
            f"Seconds per turn, with the write: {seconds['telling']['median']:.3f} telling, "
            f"{seconds['asking']['median']:.3f} asking, {seconds['asking_without_memory']['median']:.3f} with memory "
            f"off (medians); {report['wall_seconds'] / 60:.0f} minutes in all.",
        ]
    )


def turn_latency(report: dict[str, Any]) -> str:
    """The turn latency benchmark as Markdown."""
    rows = [[row["contender"], f"{row['history']:,}", *cells(row)] for row in report["rows"]]
    head = ["contender", "history (tokens)", "ms to first token", "ratio", "prompt + memory tokens", "peak RSS (MiB)"]
    return f"{origin(report)}\n\n{table([*head, 'of it for the turn', 'peak GPU (MiB)'], rows)}"


def warm_load(report: dict[str, Any]) -> str:
    """The loading benchmark as Markdown."""
    rows = [benchmarks.warm_load.cells(row) for row in report["rows"]]
    return f"{origin(report)}\n\n{table(benchmarks.warm_load.HEAD, rows)}"


def eviction(report: dict[str, Any]) -> str:
    """The comparison of eviction policies as Markdown."""
    head = f"    {report['command']}\n\n{place_and_time(report['machine'])}"
    return f"{head}\n\n{table(benchmarks.eviction.HEAD, benchmarks.eviction.table_rows(report['rows']))}"


def scale(report: dict[str, Any]) -> str:
    """The benchmark of many memories as Markdown."""
    head = f"    {report['command']}\n\n{place_and_time(report['machine'])}"
    rates, opened, megabyte = report["fill"]["per_second"], report["open_seconds"], 2**20
    added = ", ".join(f"{benchmarks.scale.ms(row['add'])} in {row['user']}'s scope" for row in report["add"])
    evicted = report["evict"]
    return "\n\n".join(
        [
            head,
            f"{report['memories']:,} memories with vectors of {report['dim']} numbers. Milliseconds, p50 (p95):",
            table(benchmarks.scale.HEAD, [benchmarks.scale.cells(row) for row in report["search"]]),
            f"A turn of two chunks, synced to disk, is added in: {added}; one that makes {evicted['evicted']} others "
            f"go, in {1000 * evicted['seconds']:.0f} ms. Batches of 100, by tenths of the filling: "
            f"{', '.join(f'{rate:,}' for rate in rates)} memories per second. Opening takes "
            f"{1000 * opened['median']:.0f} ms ({1000 * opened['q1']:.0f}-{1000 * opened['q3']:.0f}). The file has "
            f"{report['file_bytes'] / 2**30:.2f} GiB. Peak memory of a process that searches: "
            f"{report['rss_bytes'] / megabyte:.0f} MiB, of which {report['rss_before_bytes'] / megabyte:.0f} before it "
            "opens the store; pages of the file that are mapped count.",
        ]
    )


def scale_postgres(report: dict[str, Any]) -> str:
    """The benchmark of many memories on PostgreSQL as Markdown."""
    machine, own = report["machine"], benchmarks.scale_postgres
    head = f"    {report['command']}\n\n{place_and_time(machine)}"
    added = ", ".join(f"{benchmarks.scale.ms(row['add'])} in {row['user']}'s scope" for row in report["add"])
    return "\n\n".join(
        [
            f"{head} PostgreSQL {machine['postgresql']}, pgvector {machine['pgvector']}.",
            f"{report['memories']:,} memories of {report['users']} users with vectors of {report['dim']} numbers. "
            "Milliseconds, p50 (p95):",
            table(["scope", *benchmarks.scale.KINDS], [own.without_store(row) for row in report["search"]]),
            table(own.HEAD, [own.row(figures) for figures in report["compared"]]),
            f"A turn of two chunks is added in: {added}. Batches of 100, by tenths of the filling: "
            f"{', '.join(f'{rate:,}' for rate in report['fill']['per_second'])} memories per second. Tables and "
            f"indexes have {report['file_bytes'] / 2**30:.2f} GiB.",
        ]
    )


def batch_decode(report: dict[str, Any]) -> str:
    """The benchmark of answers decoded together as Markdown."""
    rows = [benchmarks.batch_decode.cells(row, report["rows"][0]) for row in report["rows"]]
    return f"{origin(report)}\n\n{table(benchmarks.batch_decode.HEAD, rows)}"


def agent_loop(report: dict[str, Any]) -> str:
    """The benchmark of an agent's steps as Markdown."""
    rows = [benchmarks.agent_loop.cells(row) for row in report["rows"]]
    return f"{origin(report)}\n\n{table(benchmarks.agent_loop.HEAD, rows)}"


def server_load(report: dict[str, Any]) -> str:
    """The benchmark of many users at one server as Markdown."""
    rows = [benchmarks.server_load.cells(row) for row in report["rows"]]
    return f"{origin(report)}\n\n{table(benchmarks.server_load.HEAD, rows)}\n\n{benchmarks.server_load.summary(report)}"


def tool_calls(report: dict[str, Any]) -> str:
    """The benchmark of calls of tools as Markdown."""
    rows = benchmarks.tool_calls.cells(report["rates"])
    return f"{origin(report)}\n\n{table(benchmarks.tool_calls.HEAD, rows)}"


def evaluation(report: dict[str, Any]) -> str:
    """What ``agentmem eval`` measured as Markdown."""
    result = Result(report["task"], report["settings"], report["rows"])
    return f"{result.markdown()}\n{place_and_time(report['machine'])}"


SECTIONS = {
    "recall": recall,
    "turn_latency": turn_latency,
    "warm_load": warm_load,
    "eviction": eviction,
    "scale": scale,
    "scale_postgres": scale_postgres,
    "server_load": server_load,
    "batch_decode": batch_decode,
    "agent_loop": agent_loop,
    "tool_calls": tool_calls,
}


def section(report: dict[str, Any]) -> str:
    """Name of the report's place in RESULTS.md."""
    name: str = report["benchmark"]
    return f"{name} {report['shape']}" if name in ("turn_latency", "warm_load", "agent_loop") else name


def insert(results: str, name: str, text: str) -> str:
    """RESULTS.md with the text between the place's two markers. Raises ValueError when it has no such place."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    if begin not in results or end not in results:
        raise ValueError(f"RESULTS.md has no place for {name!r}: add the lines {begin} and {end}")
    before, after = results.split(begin)[0], results.split(end)[1]
    return f"{before}{begin}\n\n{text}\n\n{end}{after}"


def main(
    reports: Annotated[list[Path], typer.Argument(help="JSON reports of the benchmarks.")],
    results: Annotated[Path, typer.Option(help="File to write into.")] = RESULTS,
    place: Annotated[
        str | None, typer.Option(help="Where a report goes, if not to the place of its task, or benchmark.")
    ] = None,
) -> None:
    """Write the reports' figures into RESULTS.md."""
    text = results.read_text(encoding="utf-8")
    for path in reports:
        report = json.loads(path.read_text(encoding="utf-8"))
        if "task" in report:
            text = insert(text, place or report["task"], evaluation(report))
        else:
            text = insert(text, place or section(report), SECTIONS[report["benchmark"]](report))
    results.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
