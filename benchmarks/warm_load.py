"""What loading memories adds to the time to the first token: ``python -m benchmarks.warm_load``.

The same questions, each asked with its eight memories in three places, interleaved in a new order each time:

- **hot**: decoded, in RAM;
- **warm**: on disk, with the files in the operating system's page cache;
- **cold**: text only; KV is encoded again from it.

Each ratio is to *hot* of the same question in the same round, so that a slow spell of the machine touches both sides.
CPU time is that of the thread that asks, which other jobs on the machine do not lengthen.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from enum import StrEnum
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
from agentmem.llm import BUNDLED, MemoryLLM
from agentmem.records import Scope
from benchmarks.history import CHUNK_TOKENS, USER, draw, embed, fill
from benchmarks.machine import console
from benchmarks.shapes import Shape, build

NEW_TOKENS = 2
"""Generated tokens of a turn; the time is taken at the first."""
HISTORY = 10_000
"""Tokens of history in the store."""
CODECS = "bf16,int8,int4"
TARGET = 1.10
"""A warm turn may take this many times a hot one."""

Rows = list[dict[str, Any]]


class Where(StrEnum):
    """Where the recalled memories' KV is when the question comes."""

    HOT = "hot"
    WARM = "warm"
    COLD = "cold"


class Turns:
    """Turns against one store, with the memories put in their place first."""

    def __init__(self, llm: MemoryLLM):
        self._llm = llm
        self._handle = llm.store.scope(Scope(user=USER))

    def turn(self, where: Where, question: str) -> dict[str, Any]:
        """Seconds to the first piece of the answer, and what was read."""
        self._prepare(where, question)
        conversation = self._llm.conversation(user=USER)
        began, busy = _now(), time.thread_time()
        stream = conversation.stream(question, max_new_tokens=NEW_TOKENS)
        next(stream, "")
        seconds, cpu = _now() - began, time.thread_time() - busy
        for _ in stream:
            pass
        reply = stream.reply
        self._llm.flush()
        # Every question meets the same store: what this turn added is taken out again.
        conversation.memories.delete([one.id for one in conversation.memories.list(session=conversation.session)])
        return {
            "where": where.value,
            "seconds": seconds,
            "cpu_seconds": cpu,
            "read": len(reply.memories),
            "memory_tokens": reply.usage.memory_tokens,
            "rebuilt": sum(read.rebuilt for read in reply.memories),
            "kv_bytes": sum(read.memory.kv_bytes for read in reply.memories),
        }

    def _prepare(self, where: Where, question: str) -> None:
        self._llm.reader.clear()
        if where is Where.COLD:
            self._handle.prune(max_bytes=0)
            return
        self._llm.reader.recall(self._handle, question, exclude=())  # into RAM, and whatever was cold onto the disk
        self._llm.flush()
        if where is not Where.HOT:
            self._llm.reader.clear()


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def measure(model: str, shape: Shape, codecs: list[str], questions: int, repeats: int, progress: Progress) -> Rows:
    """One row for each codec and place."""
    rows: Rows = []
    task = progress.add_task("turns", total=len(codecs) * len(Where) * questions * repeats)
    for codec in codecs:
        with (
            tempfile.TemporaryDirectory(prefix="agentmem-warm-") as folder,
            # Without a threshold every turn reads ``top_k`` memories.
            MemoryLLM(model, store=Path(folder) / "memory.db", codec=codec, threshold=None) as llm,
        ):
            drawn = draw(llm, shape, HISTORY, questions, seed=0)
            fill(llm, drawn, embed(llm, drawn.texts), HISTORY)
            turns, rng, timed = Turns(llm), random.Random(0), []
            for repeat in range(-1, repeats):  # the first round warms up
                for question in drawn.questions:
                    for where in rng.sample(list(Where), len(Where)):
                        turn = turns.turn(where, question) | {"round": (repeat, question)}
                        if repeat >= 0:
                            timed.append(turn)
                            progress.advance(task)
        rows += [_row(codec, where, timed) for where in Where]
    return rows


def _row(codec: str, where: Where, turns: Rows) -> dict[str, Any]:
    hot = {turn["round"]: turn for turn in turns if turn["where"] == Where.HOT}
    mine = [turn for turn in turns if turn["where"] == where]
    return {
        "codec": codec,
        "where": where.value,
        "seconds_to_first_token": spread([turn["seconds"] for turn in mine]),
        "ratio": spread([turn["seconds"] / hot[turn["round"]]["seconds"] for turn in mine]),
        "cpu_ratio": spread([turn["cpu_seconds"] / hot[turn["round"]]["cpu_seconds"] for turn in mine]),
        "read": min(turn["read"] for turn in mine),
        "rebuilt": sum(turn["rebuilt"] for turn in mine),
        "memory_tokens": max(turn["memory_tokens"] for turn in mine),
        "kv_bytes": max(turn["kv_bytes"] for turn in turns),
    }


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the report as text."""
    ms, ratio, cpu = row["seconds_to_first_token"], row["ratio"], row["cpu_ratio"]
    times = {name: f"{1000 * ms[name]:.1f}" for name in ("median", "q1", "q3")}
    verdict = ""
    if row["where"] == Where.WARM:
        verdict = "met" if ratio["median"] < TARGET else "NOT met"
    return [
        row["codec"],
        row["where"],
        f"{times['median']} ({times['q1']}-{times['q3']})",
        f"{ratio['median']:.3f} ({ratio['q1']:.3f}-{ratio['q3']:.3f})",
        f"{cpu['median']:.3f} ({cpu['q1']:.3f}-{cpu['q3']:.3f})",
        f"{row['memory_tokens']:,}",
        f"{row['kv_bytes'] / 2**10:,.0f}",
        verdict,
    ]


HEAD = ["codec", "memories", "ms to first token", "ratio to hot", "ratio of CPU time", "memory tokens"]
HEAD += ["KV on disk (KiB)", "below 1.10"]


def show(result: dict[str, Any], screen: Console) -> None:
    """Print the report as a table."""
    table = Table(*HEAD, title=f"eight memories, model {result['model']}: medians (quartiles)")
    for row in result["rows"]:
        table.add_row(*cells(row))
    screen.print(table)


def main(
    shape: Annotated[
        Shape, typer.Option(help="The model; all but the bundled one have random weights.")
    ] = Shape.BUNDLED,
    codecs: Annotated[str, typer.Option(help="Codecs, separated by commas.")] = CODECS,
    questions: Annotated[int, typer.Option(min=1, help="Questions, each with eight memories of its own.")] = 8,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds over all questions.")] = 5,
    out: Annotated[Path, typer.Option(help="JSON report to write.")] = Path("warm_load.json"),
    model: Annotated[
        str, typer.Option(envvar="AGENTMEM_TEST_MODEL", help="Folder of the bundled shape's model.")
    ] = BUNDLED,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
) -> None:
    """Measure what loading eight memories adds to the time to the first token."""
    torch.set_num_threads(threads)
    disable_progress_bar()  # the loaders' own bars, which break into ours
    screen = console()
    columns = (TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        tempfile.TemporaryDirectory(prefix="agentmem-warm-model-") as name,
        Progress(*columns, console=screen, disable=not screen.is_terminal) as progress,
    ):
        used = model
        if shape is not Shape.BUNDLED:
            used = str(Path(name) / shape.value)
            build(shape, Path(used))
        rows = measure(used, shape, codecs.split(","), questions, repeats, progress)
    options = f"--shape {shape} --codecs {codecs} --questions {questions} --repeats {repeats} --threads {threads}"
    result = {
        "benchmark": "warm_load",
        "command": f"python -m benchmarks.warm_load {options}",
        "machine": describe(threads),
        "model": Path(model).name if shape is Shape.BUNDLED else shape.value,
        "shape": shape.value,
        "chunk_tokens": CHUNK_TOKENS,
        "rows": rows,
    }
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    show(result, screen)


if __name__ == "__main__":
    typer.run(main)
