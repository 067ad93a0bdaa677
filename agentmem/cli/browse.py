"""``agentmem memories list | show | search``: looking without changing."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from agentmem.cli import options as opt
from agentmem.cli.opening import find, must_exist, open_llm, open_scope
from agentmem.cli.output import facts, grid, memory_table, note, out, percent, plain, print_json, size, when
from agentmem.errors import NotFound
from agentmem.records import Event, Hit, Memory
from agentmem.store import ScopedMemories


def list_memories(
    store: opt.StorePath = opt.DEFAULT_STORE,
    user: opt.User = opt.DEFAULT_USER,
    agent: opt.Agent = "",
    session: opt.Session = None,
    role: opt.RoleFilter = None,
    tag: opt.TagFilter = None,
    tier: opt.TierFilter = None,
    since: opt.Since = None,
    until: opt.Until = None,
    pinned: opt.Pinned = None,
    min_uses: opt.MinUses = None,
    sort: Annotated[
        str,
        typer.Option(
            "--sort",
            help="created_at, last_used, uses, attention, frequency, n_tokens or kv_bytes; '-' first for descending.",
        ),
    ] = "-created_at",
    limit: Annotated[int, typer.Option("--limit", help="At most so many.")] = 50,
    offset: Annotated[int, typer.Option("--offset", help="After passing over so many.")] = 0,
    json: opt.Json = False,
) -> None:
    """List memories, the newest first."""
    chosen = opt.filters(role, tag, tier, since, until, pinned, min_uses)
    with open_scope(store, user, agent, session) as memories:
        found = memories.list(sort=sort, limit=limit, offset=offset, **chosen)
        total = memories.count(**chosen)
    if json:
        print_json(found)
        return
    if found:
        out.print(memory_table(found))
    note(f"{len(found)} of {total} memories")


def show(
    id: Annotated[str, typer.Argument(metavar="ID", help="Id, whole or as the tables shorten it.")],
    store: opt.StorePath = opt.DEFAULT_STORE,
    user: opt.User = opt.DEFAULT_USER,
    agent: opt.Agent = "",
    session: opt.Session = None,
    json: opt.Json = False,
) -> None:
    """Show one memory and what happened to it. Of a deleted one only its history is left."""
    with open_scope(store, user, agent, session) as memories:
        memory, history = _with_history(memories, id)
    if json:
        print_json({"memory": memory, "history": history})
        return
    if memory is None:
        note("it was deleted; only its history is left")
    else:
        out.print(facts(_details(memory)))
        out.print()
        out.print(Text(plain(memory.text)))
        out.print()
    table = grid(("When", {"no_wrap": True}), ("What", {"no_wrap": True}), ("Why", {"ratio": 1}))
    for event in history:
        table.add_row(when(event.at), event.action, Text(plain(event.reason)))
    out.print(table)


def search(
    text: Annotated[str, typer.Argument(metavar="QUERY", help="What to look for.")],
    store: opt.StorePath = opt.DEFAULT_STORE,
    user: opt.User = opt.DEFAULT_USER,
    agent: opt.Agent = "",
    session: opt.Session = None,
    role: opt.RoleFilter = None,
    tag: opt.TagFilter = None,
    tier: opt.TierFilter = None,
    since: opt.Since = None,
    until: opt.Until = None,
    pinned: opt.Pinned = None,
    min_uses: opt.MinUses = None,
    top_k: Annotated[int, typer.Option("--top-k", help="At most so many.")] = 8,
    threshold: Annotated[float | None, typer.Option("--threshold", help="Least score.", show_default="none")] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Show the scores that went into the rank.")] = False,
    model: opt.Model = None,
    json: opt.Json = False,
) -> None:
    """Search by words and by meaning (the model embeds the query), the best first."""
    chosen = opt.filters(role, tag, tier, since, until, pinned, min_uses)
    if session is not None:
        chosen["session"] = session
    must_exist(store)
    with open_llm(store, model) as llm:
        memories = llm.conversation(user=user, agent=agent).memories
        hits = memories.search(text, top_k=top_k, threshold=threshold, explain=explain, **chosen)
    if json:
        print_json(hits)
        return
    if hits:
        out.print(memory_table([hit.memory for hit in hits], [hit.score for hit in hits]))
    if hits and explain:
        out.print()
        _explain(hits)
    note(f"{len(hits)} found")


def _with_history(memories: ScopedMemories, id: str) -> tuple[Memory | None, list[Event]]:
    try:
        (memory,) = find(memories, [id])
    except NotFound:
        return None, memories.history(id)
    return memory, memories.history(memory.id)


def _details(memory: Memory) -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = [
        ("Id", memory.id),
        ("User", memory.scope.user),
        ("Session", memory.scope.session or ""),
        ("Role", memory.role),
        ("Written", when(memory.created_at)),
        ("Tokens", memory.n_tokens),
        ("KV", f"{memory.tier}, {size(memory.kv_bytes)}"),
        ("Uses", f"{memory.uses}, attention {percent(memory.attention / max(1, memory.uses))} on average"),
        ("Frequency", f"{memory.frequency:.3f}"),
        ("Last used", when(memory.last_used) or "never"),
        ("Pinned", "yes" if memory.pinned else "no"),
        ("Expires", when(memory.expires_at) or "never"),
    ]
    if memory.scope.agent:
        rows.insert(2, ("Agent", memory.scope.agent))
    if memory.tags:
        rows.append(("Tags", ", ".join(memory.tags)))
    if memory.meta:
        rows.append(("Meta", memory.meta))
    return rows


def _explain(hits: list[Hit]) -> None:
    right = {"justify": "right", "no_wrap": True}
    columns = ("Score", "BM25", "Cosine", "BM25 z", "Cosine z")
    table = grid(*((name, right) for name in columns), ("Text", {"no_wrap": True, "overflow": "ellipsis", "ratio": 1}))
    for hit in hits:
        if (why := hit.explain) is not None:
            scores = (hit.score, why.lexical, why.dense, why.lexical_z, why.dense_z)
            table.add_row(*("none" if s is None else f"{s:.2f}" for s in scores), Text(plain(hit.memory.text)))
    out.print(table)
