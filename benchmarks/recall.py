"""What is remembered across restarts: ``python -m benchmarks.recall``.

Every user tells facts in three sessions, between small talk, corrections and questions. Each session, and the asking,
is a process of its own that opens the same store. In the end each question is asked in a new conversation, whose
window is empty, so that only memory can answer; the known ones are asked again with memory off. Names, words and codes
are made up and were held out of training.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from agentmem.evaluation.figures import Rate
from agentmem.evaluation.machine import describe
from agentmem.llm import BUNDLED, DEFAULT_CODEC
from benchmarks.machine import console
from benchmarks.processes import lines_of
from benchmarks.scoring import score
from benchmarks.scripts import GROUPS, Phase


def measure(
    store: Path, dialogues: int, seed: int, model: str, threads: int, codec: str, console: Console
) -> dict[str, Any]:
    """Run the five phases on a new store and score them."""
    model = str(Path(model).resolve()) if Path(model).is_dir() else model  # workers run in another folder
    options = ["--dialogues", str(dialogues), "--seed", str(seed), "--model", model, "--threads", str(threads)]
    options += ["--codec", codec]
    columns = (TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    lines: dict[Phase, list[dict[str, Any]]] = {}
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        for phase in Phase:
            task = progress.add_task(phase.value, total=dialogues)
            lines[phase] = []
            for line in lines_of("benchmarks.recall_worker", phase.value, str(store), *options, threads=threads):
                lines[phase].append(line)
                progress.update(task, completed=min(dialogues, len(lines[phase])))
    return score(lines)


def show(result: dict[str, Any], console: Console) -> None:
    """Print the report as tables."""
    rates = result["rates"]
    head = Table(title=f"{result['dialogues']} dialogues, {result['memories_per_user']['min']} or more memories each")
    for title in ("figure", "rate", "95 % interval", "n", "target", ""):
        head.add_column(title)
    for name, figure in rates.items():
        verdict = result["targets"].get(name)
        target = f"{verdict['direction']} {verdict['target']:.0%}" if verdict else ""
        passed = "" if verdict is None else "[green]PASS[/]" if verdict["passed"] else "[red]FAIL[/]"
        head.add_row(
            name.replace("_", " "), f"{figure['rate']:.1%}", _interval(figure), str(figure["n"]), target, passed
        )
    console.print(head)
    groups = Table(title="by group of relations")
    names = ("known_exact", "known_contained", "known_value_read", "corrected_exact", "unknown_abstained")
    for title in ("group", *names):
        groups.add_column(title.replace("_", " "))
    for group in GROUPS:
        each = result["by_group"][group]
        groups.add_row(group, *(f"{each[name]['rate']:.1%} of {each[name]['n']}" for name in names))
    console.print(groups)
    seconds, store, attention = result["seconds_per_turn"], result["store"], result["attention"]
    console.print(
        f"seconds per turn: {seconds['telling']['median']:.3f} telling, {seconds['asking']['median']:.3f} asking; "
        f"attention share of the right memories {attention['right_memories']:.2f} "
        f"(of all memories {attention['all_memories']:.2f})\n"
        f"store: {store['memories']} memories, {store['file_bytes'] / 2**20:.1f} MiB; "
        f"{result['wall_seconds']:.0f} s in all"
    )


def _interval(figure: Rate) -> str:
    return f"{figure['low']:.1%} to {figure['high']:.1%}"


def main(
    dialogues: Annotated[int, typer.Option(min=1, help="Users, each with one dialogue of three sessions.")] = 300,
    out: Annotated[Path, typer.Option(help="JSON report to write.")] = Path("recall.json"),
    model: Annotated[str, typer.Option(envvar="AGENTMEM_TEST_MODEL", help="Folder or hub id of the model.")] = BUNDLED,
    seed: Annotated[int, typer.Option(help="Seed of what is said.")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    codec: Annotated[str, typer.Option(help="How KV is stored.")] = DEFAULT_CODEC,
) -> None:
    """Measure recall across restarts. The exit code says whether it ran; the report says how well."""
    screen = console()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="agentmem-recall-") as folder:
        figures = measure(Path(folder) / "memory.db", dialogues, seed, model, threads, codec, screen)
    name = Path(model).name  # a hub id's last part, a folder's name: no path of this machine
    options = f"--dialogues {dialogues} --seed {seed} --model {name} --threads {threads}"
    if codec != DEFAULT_CODEC:
        options += f" --codec {codec}"
    result = {
        "benchmark": "recall",
        "command": f"python -m benchmarks.recall {options}",
        "machine": describe(threads),
        "model": name,
        "dialogues": dialogues,
        "seed": seed,
        "codec": codec,
        "wall_seconds": time.monotonic() - began,
        **figures,
    }
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    show(result, screen)


if __name__ == "__main__":
    typer.run(main)
