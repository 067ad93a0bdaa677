"""``agentmem demo``: two days, two processes, one store."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.rule import Rule
from rich.text import Text

from agentmem.cli import options as opt
from agentmem.cli.days import ASKED, CONTROL, TOLD, UNKNOWN, USER, Exchange, day_one, day_two
from agentmem.cli.output import err, grid, note, one_line, out, percent, print_json, share_bar, size
from agentmem.errors import InvalidInput
from agentmem.records import MemoryRead, Tier

_SHOWN_READS = 5

Check = tuple[str, bool]
"""What must hold, and whether it does."""


def demo(
    store: Annotated[
        Path | None, typer.Option("--store", help="Keep the store in this new file.", show_default="thrown away")
    ] = None,
    model: opt.Model = None,
    json: opt.Json = False,
) -> None:
    """Tell a model some facts, end the process, and ask for them in another one. Exit code 1 if it cannot tell."""
    if store is not None and store.exists():
        raise InvalidInput(
            f"{store} exists; the demo begins with a new store, and leaves yours alone: give another --store"
        )
    with tempfile.TemporaryDirectory(prefix="agentmem-demo-") as folder:
        where = Path(folder) / "memory.db" if store is None else store
        started = time.monotonic()
        told = _day("one", where, model, quiet=json)
        answers = _day("two", where, model, quiet=json)
        checks = _checks(answers)
        if json:
            asked = {exchange.label: exchange.model_dump(mode="json") for exchange in answers}
            print_json({"told": told, **asked, "checks": dict(checks), "ok": all(ok for _, ok in checks)})
        else:
            out.print(Rule(style="dim"))
            for name, ok in checks:
                out.print(Text.assemble((" yes  ", "bold green") if ok else (" no   ", "bold red"), name))
            kept = f"kept in {store}; go on with: agentmem chat --store {store} --user {USER}"
            note(f"{time.monotonic() - started:.1f} s; the store was {'thrown away' if store is None else kept}")
    if not all(ok for _, ok in checks):
        raise typer.Exit(1)


def demo_day(
    day: Annotated[str, typer.Argument(help="one or two")],
    store: Annotated[Path, typer.Option("--store")],
    model: opt.Model = None,
) -> None:
    """One day of the demo, in a process of its own: prints each exchange as a line of JSON."""
    for exchange in (day_one if day == "one" else day_two)(store, model):
        typer.echo(exchange.model_dump_json(ensure_ascii=True))


def _day(day: str, store: Path, model: str | None, *, quiet: bool) -> list[Exchange]:
    """Run a day as a process of its own, and show its exchanges as they come."""
    command = [sys.executable, "-m", "agentmem", "demo-day", day, "--store", str(store)]
    command += ["--model", model] if model else []
    exchanges = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8") as process:  # noqa: S603 - ours
        if not quiet:
            out.print(Rule(Text(f"Day {day}: process {process.pid}", style="bold"), align="left", style="dim"))
        for exchange in _waiting(_lines(process), f"day {day}"):
            exchanges.append(exchange)
            if not quiet:
                _show(exchange)
    if process.returncode:
        note(f"error: day {day} ended with exit code {process.returncode}", style="bold red")
        raise typer.Exit(1)
    if not quiet and day == "one":
        files = sum(path.stat().st_size for path in store.parent.glob(f"{store.name}*") if path.is_file())
        out.print(
            Text(f"The process has ended. What is left of it: {store}, {size(files)}.", style="dim"), soft_wrap=True
        )
    return exchanges


def _lines(process: subprocess.Popen[str]) -> Iterator[Exchange]:
    for line in process.stdout or ():
        yield Exchange.model_validate_json(line)


def _waiting(exchanges: Iterator[Exchange], what: str) -> Iterator[Exchange]:
    """The same exchanges, with a sign of life while the next one is awaited."""
    while True:
        with err.status(what):
            exchange = next(exchanges, None)
        if exchange is None:
            return
        yield exchange


def _show(exchange: Exchange) -> None:
    if exchange.label == CONTROL:
        out.print(Text("\nThe same question with memory off (top_k=0):", style="bold"))
    elif exchange.label == UNKNOWN:
        out.print(Text("\nSomething that nobody told it:", style="bold"))
    elif exchange.label != TOLD:
        out.print()
    out.print(Text.assemble(("you  ", "bold blue"), one_line(exchange.said)))
    out.print(Text.assemble(("llm  ", "bold green"), (one_line(exchange.reply.text), "bold")))
    if exchange.label != ASKED:
        return
    out.print(Text(f"\nAll that its context held ({exchange.reply.usage.prompt_tokens} tokens):", style="dim"))
    out.print(Text(one_line(exchange.context)))
    from_disk = [read.memory for read in exchange.reply.memories if _from_disk(read)]
    read = f"{len(from_disk)} memories, {size(sum(memory.kv_bytes for memory in from_disk))} of keys and values"
    out.print(Text(f"\nRead from disk by attention: {read}", style="dim"))
    table = grid(
        ("Attention", {"justify": "right", "no_wrap": True}),
        ("", {"no_wrap": True}),
        ("Memory", {"no_wrap": True, "overflow": "ellipsis", "ratio": 1}),
        ("Role", {"no_wrap": True}),
        ("Tier", {"no_wrap": True}),
        ("KV", {"justify": "right", "no_wrap": True}),
    )
    for one in exchange.reply.memories[:_SHOWN_READS]:
        memory = one.memory
        table.add_row(
            percent(one.attention),
            share_bar(one.attention),
            Text(one_line(memory.text)),
            str(memory.role),
            str(memory.tier),
            size(memory.kv_bytes),
        )
    out.print(table)


def _from_disk(read: MemoryRead) -> bool:
    """Whether its KV was on disk, whole, and received attention. (The process is new: nothing is in RAM yet.)"""
    return read.memory.tier is Tier.WARM and not read.rebuilt and read.attention > 0


def _checks(exchanges: list[Exchange]) -> list[Check]:
    """What the second day must have shown."""
    by_label = {exchange.label: exchange for exchange in exchanges}
    asked, unknown, control = by_label[ASKED], by_label[UNKNOWN], by_label[CONTROL]
    source = [read for read in asked.reply.memories if asked.expected in read.memory.text]
    return [
        (f"the new process knew the answer: {asked.expected}", asked.knew),
        ("its context held nothing of what was told", not asked.told_in_context),
        ("it read the answer from keys and values on disk", any(map(_from_disk, source))),
        ("with memory off, it did not know", not control.knew and not control.reply.memories),
        ("asked for what nobody told it, it named nothing that was told", not unknown.told_in_answer),
    ]
