"""``agentmem serve`` and ``agentmem keys``."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from agentmem.cli import options as opt
from agentmem.cli.opening import open_llm
from agentmem.cli.output import note, out
from agentmem.errors import InvalidInput

keys_app = typer.Typer(name="keys", help="API keys of the server: who may reach whose memories.", no_args_is_help=True)

KeysPath = Annotated[
    Path, typer.Option("--keys", envvar="AGENTMEM_KEYS", help="File of the keys' hashes.", metavar="FILE")
]
DEFAULT_KEYS = Path("keys.json")


def serve(
    model: opt.Model = None,
    store: opt.StorePath = opt.DEFAULT_STORE,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port to listen on; 0 takes a free one.")
    ] = 8000,
    keys: Annotated[
        Path | None,
        typer.Option(
            "--keys", envvar="AGENTMEM_KEYS", metavar="FILE", help="Only who has one of these keys may come in."
        ),
    ] = None,
    recipe: Annotated[
        str, typer.Option("--recipe", metavar="NAME[:FIELD=VALUE,...]", help="How memory is written and read.")
    ] = "parallel",
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", help="Longest answer in tokens, where a request names none.")
    ] = 128,
    at_once: Annotated[
        int, typer.Option("--at-once", min=1, max=32, help="Answers that the model writes at the same time.")
    ] = 16,
    rate: Annotated[str, typer.Option("--rate", help="Requests per key or address; none for no limit.")] = "600/minute",
    max_body: Annotated[int, typer.Option("--max-body", parser=opt.byte_size, help="Largest request.")] = 8 * 2**20,
) -> None:
    """Serve the model and its memory: OpenAI's endpoints, the memory API, the inspector page, health and metrics.

    Only this machine reaches it, unless --host says otherwise; then keys are needed. Logs are JSON lines on stderr.
    """
    need("server", "fastapi")
    from agentmem.server.keys import KeyFile
    from agentmem.server.limits import Limits
    from agentmem.server.run import check_address, log_to_stderr, make_server, own_names, run

    if keys is not None and not keys.exists():
        raise InvalidInput(f"there is no file of keys at {keys}; make one with: agentmem keys add NAME --keys {keys}")
    check_address(host, keys=keys is not None)
    limits = Limits(rate=None if rate == "none" else rate, max_body=max_body, at_once=at_once)
    _ = limits.rate_item
    # PyTorch takes seconds: not before all that was checked.
    from agentmem.recipes.spec import parse_recipe
    from agentmem.server.app import make_app

    with open_llm(store, model, recipe=parse_recipe(recipe), max_new_tokens=max_new_tokens) as llm:
        app = make_app(
            llm,
            keys=None if keys is None else KeyFile(keys),
            hosts=own_names(host, keys=keys is not None),
            limits=limits,
        )
        log_to_stderr()
        run(make_server(app, host, port))


@keys_app.command("add")
def add(
    name: Annotated[str, typer.Argument(help="What logs call the key.")],
    user: Annotated[
        list[str], typer.Option("--user", help="User whose memories it reaches, * for every one; may be repeated.")
    ],
    keys: KeysPath = DEFAULT_KEYS,
    agent: Annotated[str, typer.Option("--agent", help="Agent that they belong to, * for every one.")] = "",
) -> None:
    """Make a key and print it. Only its hash is kept: it is shown this once."""
    need("server", "fastapi")
    from agentmem.server.keys import Grant, add_key

    try:
        grants = [Grant(user=one, agent=agent) for one in user]
    except ValidationError as error:
        raise InvalidInput(f"no such scope: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from error
    out.print(add_key(keys, name, grants), soft_wrap=True)
    note(f"kept its hash in {keys}")


@keys_app.command("list")
def list_keys(keys: KeysPath = DEFAULT_KEYS) -> None:
    """List the keys' names and what they reach."""
    need("server", "fastapi")
    from agentmem.server.keys import read_keys

    for key in read_keys(keys):
        reach = ", ".join(grant.user + (f" (agent {grant.agent})" if grant.agent else "") for grant in key.grants)
        out.print(f"{key.name}: {reach}", soft_wrap=True)


@keys_app.command("remove")
def remove(name: Annotated[str, typer.Argument(help="The key's name.")], keys: KeysPath = DEFAULT_KEYS) -> None:
    """Remove a key. Who uses it is refused from the next request on."""
    need("server", "fastapi")
    from agentmem.server.keys import remove_key

    remove_key(keys, name)
    note(f"removed {name}")


def need(extra: str, package: str) -> None:
    """Raises InvalidInput when the packages of an extra are not installed."""
    if find_spec(package) is None:
        raise InvalidInput(f'this needs more packages: pip install "agentmem-kv[{extra}]"')
