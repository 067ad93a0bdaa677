"""``agentmem memories stats | verify | export | import``: the store as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from agentmem.cli import options as opt
from agentmem.cli.opening import make_scope, open_scope, open_store
from agentmem.cli.output import err, facts, grid, note, out, print_json, progress, short_id, size, when
from agentmem.records import VerifyReport
from agentmem.store.postgres.engine import shown


def stats(
    store: opt.StorePath = opt.DEFAULT_STORE,
    user: opt.User = opt.DEFAULT_USER,
    agent: opt.Agent = "",
    session: opt.Session = None,
    all_users: Annotated[bool, typer.Option("--all-users", help="The whole store instead of one user.")] = False,
    json: opt.Json = False,
) -> None:
    """Show how much is remembered, and how much room it takes."""
    if all_users:
        with open_store(store) as whole:
            numbers = whole.stats()
    else:
        with open_scope(store, user, agent, session) as memories:
            numbers = memories.stats()
    if json:
        print_json(numbers)
        return
    rows: list[tuple[str, object]] = [
        ("Memories", f"{numbers.memories} ({numbers.pinned} pinned)"),
        ("Text", f"{numbers.tokens} tokens, {size(numbers.text_bytes)}"),
        ("KV", f"{size(numbers.kv_bytes)}: {numbers.warm} warm, {numbers.cold} cold"),
        ("Streams", f"{numbers.streams}, {size(numbers.stream_bytes)} of the KV"),
        ("Uses", numbers.uses),
        ("Oldest", when(numbers.oldest) or "none"),
        ("Newest", when(numbers.newest) or "none"),
        ("Store", f"{shown(store)}, {size(numbers.file_bytes)} on disk"),
    ]
    out.print(facts(rows))


def verify(
    store: opt.StorePath = opt.DEFAULT_STORE,
    repair: Annotated[bool, typer.Option("--repair", help="Rebuild what can be rebuilt from the text.")] = False,
    json: opt.Json = False,
) -> None:
    """Check the whole store: rows, search indexes, KV and files. Exit code 1 when something is wrong."""
    with open_store(store) as whole, err.status("checking the store"):
        report = whole.verify(repair=repair)
    if json:
        print_json({**report.model_dump(mode="json"), "ok": report.ok})
    else:
        _print_report(report, repair)
    if not report.ok:
        raise typer.Exit(1)


def export(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="JSON lines file to write.")],
    store: opt.StorePath = opt.DEFAULT_STORE,
    user: opt.User = opt.DEFAULT_USER,
    agent: opt.Agent = "",
    session: opt.Session = None,
    kv: Annotated[bool, typer.Option("--kv", help="Their KV too, into a file beside it (.safetensors).")] = False,
    json: opt.Json = False,
) -> None:
    """Write a user's memories to a file: text, provenance and usage. Embeddings are made anew from the text, and so is
    KV that does not go with it."""
    with open_scope(store, user, agent, session) as memories, progress() as bar:
        task = bar.add_task("exporting", total=None)
        n = memories.export(path, kv=kv, progress=lambda done, total: bar.update(task, completed=done, total=total))
    if json:
        print_json({"exported": n, "path": str(path)})
    else:
        note(f"{n} memories written to {path}")


def import_(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="File that `agentmem memories export` wrote.")],
    store: opt.StorePath = opt.DEFAULT_STORE,
    user: opt.User = opt.DEFAULT_USER,
    agent: opt.Agent = "",
    session: Annotated[str | None, typer.Option("--session", help="Put all of them into this session.")] = None,
    json: opt.Json = False,
) -> None:
    """Read an export into a user's memories. Every line is checked before anything is written.

    Memories that are there already stay as they are. The next program that opens the store with a model embeds them.
    """
    scope = make_scope(user, agent, session)
    with open_store(store, create=True) as whole, progress() as bar:
        task = bar.add_task("importing", total=None)
        n = whole.scope(scope).load(path, progress=lambda done, total: bar.update(task, completed=done, total=total))
    if json:
        print_json({"imported": n, "path": str(path)})
    else:
        note(f"{n} new memories from {path}")


def _print_report(report: VerifyReport, repair: bool) -> None:
    if report.problems:
        table = grid(("What", {"no_wrap": True}), ("Id", {"no_wrap": True}), ("Repaired", {}), ("Detail", {"ratio": 1}))
        for problem in report.problems:
            id = short_id(problem.id) if problem.id else ""
            table.add_row(problem.kind, id, "yes" if problem.repaired else "no", Text(problem.detail))
        out.print(table)
    note(f"{report.checked} checked, {len(report.problems)} problems")
    if not report.ok and not repair:
        note("add --repair to rebuild what can be rebuilt from the text")
