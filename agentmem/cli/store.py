"""``agentmem store copy | migrate | rebuild | vacuum``: to another engine, schema, model; without forgotten bytes."""

from __future__ import annotations

from typing import Annotated

import typer

from agentmem.cli import options as opt
from agentmem.cli.opening import must_exist, open_llm
from agentmem.cli.output import note, print_json, progress
from agentmem.store import Store
from agentmem.store.copying import copy as copy_store
from agentmem.store.opening import HEAD


def copy(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A file, or postgresql://user:password@host/db.")],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="As SOURCE; new, or empty.")],
    kv_store: Annotated[
        str | None, typer.Option("--kv-store", help="Bucket for TARGET's larger KV, s3://bucket/prefix.")
    ] = None,
    json: opt.Json = False,
) -> None:
    """Copy a whole store, KV included, into an empty one: from a file to PostgreSQL, or back."""
    must_exist(source)
    with Store.open(source) as old, Store.open(target, kv_store=kv_store) as new, progress() as bar:
        task = bar.add_task("copying", total=None)
        copied = copy_store(old, new, lambda done, total: bar.update(task, completed=done, total=total))
        names = (old.database.name, new.database.name)
    if json:
        print_json(vars(copied))
        return
    note(f"{copied.memories} memories and the KV of {copied.payloads} copied from {names[0]} to {names[1]}")
    if copied.damaged or copied.streams:
        note(f"to be encoded anew: KV of {copied.damaged} memories, {copied.streams} streams of sessions")


def migrate(store: Annotated[str, typer.Argument(metavar="STORE", help="As SOURCE of copy.")]) -> None:
    """Bring a store to the newest schema. Opening it does the same; this does nothing else."""
    must_exist(store)
    with Store.open(store) as opened:
        note(f"{opened.database.name} has schema {HEAD}")


def vacuum(store: Annotated[str, typer.Argument(metavar="STORE", help="As SOURCE of copy.")]) -> None:
    """Leave no byte of what was forgotten in the store's files. For PostgreSQL, where deleting alone does not.

    Every table is written anew (VACUUM FULL) and is locked meanwhile. Exit code 1 when a reader stood in the way.
    """
    must_exist(store)
    with Store.open(store) as opened:
        done, name = opened.vacuum(), opened.database.name
    note(f"nothing that was forgotten is in the files of {name}" if done else f"{name} is in use; try again")
    if not done:
        raise typer.Exit(1)


def rebuild(
    store: Annotated[str, typer.Argument(metavar="STORE", help="As SOURCE of copy.")],
    model: opt.Model = None,
    recipe: Annotated[
        str, typer.Option("--recipe", metavar="NAME[:FIELD=VALUE,...]", help="How memories are encoded.")
    ] = "parallel",
    user: Annotated[str | None, typer.Option("--user", help="Only this user's.", show_default="everybody")] = None,
    agent: opt.Agent = "",
    json: opt.Json = False,
) -> None:
    """Encode all KV anew for a model and recipe; after a change of either. KV of others is removed.

    Without this, each memory is encoded anew at its next recall. An interrupted run goes on where it stopped.
    """
    # Imported here: torch takes seconds.
    from agentmem.recipes import memory_recipe
    from agentmem.recipes.spec import parse_recipe

    must_exist(store)
    with open_llm(store, model, recipe=memory_recipe(parse_recipe(recipe))) as llm, progress() as bar:
        task = bar.add_task("encoding", total=None)
        done = llm.rebuild(
            user=user, agent=agent, advance=lambda what, done, total: bar.update(task, completed=done, total=total)
        )
    if json:
        print_json(vars(done))
        return
    note(f"{done.memories} memories: {done.encoded} encoded anew, {done.replaced} payloads of others removed")
    if done.cold:
        note(f"{done.cold} stay text, for the budget of KV is full; they are encoded when they are recalled")
