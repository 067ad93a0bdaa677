"""``agentmem memories pin | unpin | delete | prune``: changing what is remembered."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.text import Text

from agentmem.cli import options as opt
from agentmem.cli.opening import find, open_scope
from agentmem.cli.output import err, grid, memory_table, note, out, print_json, short_id, size
from agentmem.errors import InvalidInput


def pin(
    ids: opt.Ids,
    store: opt.StorePath = opt.DEFAULT_STORE,
    user: opt.User = opt.DEFAULT_USER,
    agent: opt.Agent = "",
    session: opt.Session = None,
    json: opt.Json = False,
) -> None:
    """Keep memories for good: pinned ones are never evicted."""
    _pin(ids, store, user, agent, session, json, pinned=True)


def unpin(
    ids: opt.Ids,
    store: opt.StorePath = opt.DEFAULT_STORE,
    user: opt.User = opt.DEFAULT_USER,
    agent: opt.Agent = "",
    session: opt.Session = None,
    json: opt.Json = False,
) -> None:
    """Let memories be evicted again."""
    _pin(ids, store, user, agent, session, json, pinned=False)


def delete(
    ids: opt.Ids,
    store: opt.StorePath = opt.DEFAULT_STORE,
    user: opt.User = opt.DEFAULT_USER,
    agent: opt.Agent = "",
    session: opt.Session = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: opt.Json = False,
) -> None:
    """Forget memories: nothing of them remains but an entry in the history, without their text."""
    if not yes and not sys.stdin.isatty():
        raise InvalidInput("nobody can be asked here, because stdin is no terminal; nothing was deleted: add --yes")
    with open_scope(store, user, agent, session) as memories:
        found = find(memories, ids)
        if not yes:
            err.print(memory_table(found))
            typer.confirm(f"Forget {_count(len(found))}? This cannot be undone.", abort=True, err=True)
        forgotten = memories.delete([memory.id for memory in found])
    if json:
        print_json({"deleted": list(forgotten.ids), "complete": forgotten.complete})
    else:
        note(f"{_count(len(found))} forgotten")
    if not forgotten.complete:
        note("another process still reads an older state: the next write or open erases what is left in the log")


def prune(
    store: opt.StorePath = opt.DEFAULT_STORE,
    user: opt.User = opt.DEFAULT_USER,
    agent: opt.Agent = "",
    session: opt.Session = None,
    max_bytes: Annotated[
        int | None,
        typer.Option(
            "--max-bytes", parser=opt.byte_size, metavar="SIZE", help="Drop KV until so much is left (500MB)."
        ),
    ] = None,
    max_memories: Annotated[int | None, typer.Option("--max-memories", help="Delete until so many are left.")] = None,
    unused_for: Annotated[
        str | None, typer.Option("--unused-for", metavar="TIME", help="Delete what was not used for so long (30d).")
    ] = None,
    apply: Annotated[bool, typer.Option("--apply", help="Do it. Without this, only say what would go.")] = False,
    json: opt.Json = False,
) -> None:
    """Evict the least used memories until the limits hold. Says what would go, and why; does it with --apply."""
    if max_bytes is None and max_memories is None and unused_for is None:
        raise typer.BadParameter("give at least one limit: --max-bytes, --max-memories or --unused-for")
    with open_scope(store, user, agent, session) as memories:
        report = memories.prune(
            max_bytes=max_bytes, max_memories=max_memories, unused_for=unused_for, dry_run=not apply
        )
    if json:
        print_json(report)
        return
    right = {"justify": "right", "no_wrap": True}
    table = grid(("Id", {"no_wrap": True}), ("Action", {"no_wrap": True}), ("KV", right), ("Why", {"ratio": 1}))
    for pruned in report.pruned:
        table.add_row(short_id(pruned.id), pruned.action, size(pruned.kv_bytes), Text(pruned.reason))
    if report.pruned:
        out.print(table)
    gone = sum(pruned.action == "delete" for pruned in report.pruned)
    dropped = len(report.pruned) - gone
    done = f"{gone} deleted, {dropped} without KV, {size(report.freed_kv_bytes)} freed, {report.kept} kept"
    note(done if apply else f"with --apply: {done}; nothing was changed now")


def _pin(
    ids: list[str], store: opt.StorePath, user: str, agent: str, session: str | None, json: bool, *, pinned: bool
) -> None:
    with open_scope(store, user, agent, session) as memories:
        changed = [memories.pin(memory.id, pinned) for memory in find(memories, ids)]
    if json:
        print_json(changed)
    else:
        out.print(memory_table(changed))
        note(f"{_count(len(changed))} {'pinned' if pinned else 'unpinned'}")


def _count(n: int) -> str:
    return "1 memory" if n == 1 else f"{n} memories"
