"""What one turn costs as the history grows: ``python -m benchmarks.turn_latency``.

Time to first token and peak memory of one turn, against stores with histories of growing length, for three contenders
on one model: agentmem; the whole history as text in the context, where it fits; text RAG, which pastes the same
recalled chunks into the prompt. Times are taken in one process, interleaved in a new order for each question; peak
memory is that of one turn in a process of its own.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from transformers.utils.logging import disable_progress_bar

from agentmem.evaluation.figures import spread
from agentmem.evaluation.machine import describe
from agentmem.llm import BUNDLED
from benchmarks.history import CHUNK_TOKENS, draw, embed, fill, open_history, store_path
from benchmarks.latency_worker import Contender
from benchmarks.machine import console
from benchmarks.processes import lines_of
from benchmarks.shapes import Shape, build

HISTORIES = "1000,10000,100000,1000000"
WORKER = "benchmarks.latency_worker"

Rows = list[dict[str, Any]]


def prepare(folder: Path, shape: Shape, model: str, histories: list[int], questions: int, progress: Progress) -> None:
    """Fill one store per history, and write what the workers need to plan.json."""
    task = progress.add_task("filling", total=len(histories) + 1)
    chunks: dict[str, int] = {}
    drawn = vectors = None
    for tokens in histories:
        with open_history(folder, model, tokens) as llm:
            if drawn is None or vectors is None:
                drawn = draw(llm, shape, max(histories), questions, seed=0)
                vectors = embed(llm, drawn.texts)
                progress.advance(task)
            chunks[str(tokens)] = fill(llm, drawn, vectors, tokens)
        progress.advance(task)
    assert drawn is not None
    plan = {"texts": drawn.texts, "questions": drawn.questions, "chunks": chunks}
    (folder / "plan.json").write_text(json.dumps(plan), encoding="utf-8")


def measure(folder: Path, model: str, histories: list[int], repeats: int, threads: int, progress: Progress) -> Rows:
    """Peak memory, then times; one row for each contender and history."""
    option = ("--threads", str(threads))
    peaks: Rows = []
    pairs = [(contender, tokens) for contender in Contender for tokens in histories]
    for contender, tokens in progress.track(pairs, description="peak memory"):
        peaks += lines_of(WORKER, "peak", str(folder), model, str(tokens), contender.value, *option, threads=threads)
    fitting = sum(peak["fits"] for peak in peaks)
    task = progress.add_task("timing", total=fitting * (repeats + 1))
    turns = []
    for line in lines_of(WORKER, "time", str(folder), model, *map(str, histories), *option, threads=threads):
        turns.append(line)
        progress.advance(task)
    return [_row(peak, turns, folder) for peak in peaks]


def _row(peak: dict[str, Any], turns: Rows, folder: Path) -> dict[str, Any]:
    of = (peak["contender"], peak["history"])
    timed = [turn for turn in turns if (turn["contender"], turn["history"]) == of and not turn["warm_up"]]
    if not timed:
        return peak
    return {
        **peak,
        "seconds": [turn["seconds"] for turn in timed],
        "seconds_to_first_token": spread([turn["seconds"] for turn in timed]),
        "prompt_tokens": max(turn["prompt_tokens"] for turn in timed),
        "memory_tokens": max(turn["memory_tokens"] for turn in timed),
        "rebuilt": sum(turn["rebuilt"] for turn in timed),
        "store_bytes": store_path(folder, peak["history"]).stat().st_size,
    }


def against_first(rows: Rows) -> None:
    """Give each row its time as a ratio to agentmem's at the shortest history."""
    own = [row for row in rows if row["contender"] == Contender.AGENTMEM]
    first = min(own, key=lambda row: int(row["history"]))["seconds_to_first_token"]["median"]
    for row in rows:
        if row["fits"]:
            row["ratio"] = row["seconds_to_first_token"]["median"] / first


def show(result: dict[str, Any], console: Console) -> None:
    """Print the report as a table."""
    table = Table(title=f"one turn, model {result['model']}: median of {result['repeats']} (quartiles)")
    for name in ("contender", "history", "ms to first token", "ratio", "prompt + memory", "MiB peak", "of turn", "GPU"):
        table.add_column(name, justify="left" if name == "contender" else "right", no_wrap=True)
    for row in result["rows"]:
        table.add_row(row["contender"], f"{row['history']:,}", *cells(row))
    console.print(table)


def cells(row: dict[str, Any]) -> list[str]:
    """A row's times (ms), ratio, tokens, and peak memory (MiB) as text."""
    if not row["fits"]:
        return ["does not fit", "", "", "", "", ""]
    ms = {name: f"{1000 * row['seconds_to_first_token'][name]:.1f}" for name in ("median", "q1", "q3")}
    gpu = row["cuda_peak_bytes"]
    return [
        f"{ms['median']} ({ms['q1']}-{ms['q3']})",
        f"{row['ratio']:.2f}",
        f"{row['prompt_tokens']:,} + {row['memory_tokens']:,}",
        f"{row['rss_peak_bytes'] / 2**20:.0f}",
        f"{(row['rss_peak_bytes'] - row['rss_before_bytes']) / 2**20:.1f}",
        "" if gpu is None else f"{gpu / 2**20:.0f}",
    ]


def main(
    shape: Annotated[
        Shape, typer.Option(help="The model; all but the bundled one have random weights.")
    ] = Shape.BUNDLED,
    histories: Annotated[str, typer.Option(help="Tokens of history, separated by commas.")] = HISTORIES,
    repeats: Annotated[int, typer.Option(min=5, help="Timed questions for each contender and history.")] = 7,
    out: Annotated[Path, typer.Option(help="JSON report to write.")] = Path("turn_latency.json"),
    model: Annotated[
        str, typer.Option(envvar="AGENTMEM_TEST_MODEL", help="Folder of the bundled shape's model.")
    ] = BUNDLED,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
) -> None:
    """Measure one turn against growing histories."""
    lengths = sorted({int(number) for number in histories.split(",")})
    if lengths[0] < CHUNK_TOKENS:
        raise typer.BadParameter(f"a history has at least {CHUNK_TOKENS} tokens, not {lengths[0]}")
    torch.set_num_threads(threads)
    disable_progress_bar()  # the loaders' own bars, which break into ours
    screen = console()
    columns = (TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        tempfile.TemporaryDirectory(prefix="agentmem-latency-") as name,
        Progress(*columns, console=screen, disable=not screen.is_terminal) as progress,
    ):
        folder = Path(name)
        if shape is Shape.BUNDLED:
            used = str(Path(model).resolve()) if Path(model).is_dir() else model  # workers run in another folder
        else:
            used = str(folder / shape.value)
            build(shape, folder / shape.value)
        prepare(folder, shape, used, lengths, repeats + 1, progress)
        rows = measure(folder, used, lengths, repeats, threads, progress)
    against_first(rows)
    listed = ",".join(map(str, lengths))
    options = f"--shape {shape} --histories {listed} --repeats {repeats} --threads {threads}"
    result = {
        "benchmark": "turn_latency",
        "command": f"python -m benchmarks.turn_latency {options}",
        "machine": describe(threads),
        "model": Path(model).name if shape is Shape.BUNDLED else shape.value,
        "shape": shape.value,
        "histories": lengths,
        "repeats": repeats,
        "rows": rows,
    }
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    show(result, screen)


if __name__ == "__main__":
    typer.run(main)
