"""The ``agentmem`` command.

Results go to stdout, everything else (progress, notes, errors) to stderr. Exit codes: 0 done, 1 an error or a failed
check, 2 a usage error, 130 interrupted.
"""

from __future__ import annotations

import io
import sys
from importlib.metadata import version
from typing import Annotated

import typer

from agentmem.cli import browse, change, chat, demo, doctor, evaluate, ingest, mcp, serve, store, train, upkeep
from agentmem.cli.errors import Commands

app = typer.Typer(
    name="agentmem",
    cls=Commands,
    help="A memory that lasts, for local language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
memories = typer.Typer(
    name="memories",
    help="Look at, search, pin, forget, prune, check, export and import memories.",
    no_args_is_help=True,
)
stores = typer.Typer(name="store", help="Copy, migrate, rebuild and vacuum whole stores.", no_args_is_help=True)
app.add_typer(memories)
app.add_typer(stores)
app.add_typer(evaluate.app)
app.add_typer(train.app)
app.add_typer(serve.keys_app)

app.command("demo")(demo.demo)
app.command("demo-day", hidden=True)(demo.demo_day)
app.command("chat")(chat.chat)
app.command("doctor")(doctor.doctor)
app.command("ingest")(ingest.ingest)
app.command("serve")(serve.serve)
app.command("mcp")(mcp.mcp)
memories.command("list")(browse.list_memories)
memories.command("show")(browse.show)
memories.command("search")(browse.search)
memories.command("pin")(change.pin)
memories.command("unpin")(change.unpin)
memories.command("delete")(change.delete)
memories.command("prune")(change.prune)
memories.command("stats")(upkeep.stats)
memories.command("verify")(upkeep.verify)
memories.command("export")(upkeep.export)
memories.command("import")(upkeep.import_)
stores.command("copy")(store.copy)
stores.command("migrate")(store.migrate)
stores.command("rebuild")(store.rebuild)
stores.command("vacuum")(store.vacuum)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"agentmem {version('agentmem-kv')}")
        raise typer.Exit


@app.callback()
def main(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """A memory that lasts, for local language models."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks a character shows "?", and nothing breaks
            stream.reconfigure(errors="replace")
