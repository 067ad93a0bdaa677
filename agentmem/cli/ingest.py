"""``agentmem ingest``: a knowledge base becomes memories."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import TaskID

from agentmem.cli import options as opt
from agentmem.cli.opening import make_scope, open_llm
from agentmem.cli.output import note, print_json, progress, size
from agentmem.errors import InvalidInput


def ingest(
    paths: Annotated[
        list[Path], typer.Argument(metavar="FOLDER|FILE...", help="Text, Markdown or JSON lines (key text).")
    ],
    store: opt.StorePath = opt.DEFAULT_STORE,
    user: opt.User = opt.DEFAULT_USER,
    agent: opt.Agent = "",
    model: opt.Model = None,
    recipe: Annotated[
        str, typer.Option("--recipe", metavar="NAME[:FIELD=VALUE,...]", help="How references are encoded.")
    ] = "memory3",
    cold: Annotated[bool, typer.Option("--cold", help="Encode each reference at its first recall, not now.")] = False,
    compress: Annotated[
        bool, typer.Option("--compress", help="Product quantisation of the KV (extra: agentmem-kv[pq]).")
    ] = False,
    json: opt.Json = False,
) -> None:
    """Store a knowledge base: references of at most 128 tokens, embedded, and encoded ahead.

    What is there already is passed over: a second run adds nothing, and one that was interrupted goes on.
    """
    # Imported here: torch takes seconds.
    from agentmem.llm import DEFAULT_CODEC
    from agentmem.recipes import memory_recipe
    from agentmem.recipes.spec import parse_recipe

    make_scope(user, agent, None)
    if cold and compress:
        raise InvalidInput("--cold encodes nothing, so there is nothing to --compress")
    codec = "pq" if compress else DEFAULT_CODEC
    chosen = memory_recipe(parse_recipe(recipe))
    with open_llm(store, model, recipe=chosen, codec=codec) as llm, progress() as bars:
        tasks: dict[str, TaskID] = {}

        def advance(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        done = llm.ingest(paths, user=user, agent=agent, warm=not cold, advance=advance)
        squeezed = llm.compress(user=user, agent=agent, advance=advance) if compress else None
    if json:
        print_json(
            {**dataclasses.asdict(done), "compressed": None if squeezed is None else dataclasses.asdict(squeezed)}
        )
        return
    note(
        f"{done.references} references in {done.documents} documents: {done.added} new, {done.encoded} encoded"
        + (", none of them yet (--cold)" if cold else "")
    )
    if squeezed is not None:
        note(f"KV of {squeezed.memories} memories: {size(squeezed.bytes_before)} -> {size(squeezed.bytes_after)}")
