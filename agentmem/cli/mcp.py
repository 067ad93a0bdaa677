"""``agentmem mcp``."""

from __future__ import annotations

from typing import Annotated

import typer

from agentmem.cli import options as opt
from agentmem.cli.opening import open_llm
from agentmem.cli.serve import need


def mcp(
    model: opt.Model = None,
    store: opt.StorePath = opt.DEFAULT_STORE,
    user: opt.User = opt.DEFAULT_USER,
    agent: opt.Agent = "",
    http: Annotated[
        bool, typer.Option("--http", help="Speak streamable HTTP at http://127.0.0.1:PORT/mcp instead of stdio.")
    ] = False,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port for --http; 0 takes a free one.")] = 8001,
) -> None:
    """Offer the memories of one user to an agent, over the Model Context Protocol.

    The model is used to find memories by meaning, and to keep their attention KV; it writes no text. For other machines
    and several users, `agentmem serve` has it at /mcp, behind its keys.
    """
    need("mcp", "mcp")
    from agentmem.server.mcp_server import http_app, make_mcp

    with open_llm(store, model) as llm:
        server = make_mcp(llm, user=user, agent=agent)
        if not http:
            server.run("stdio")
            return
        need("server", "fastapi")
        from agentmem.server.run import log_to_stderr, make_server, run

        log_to_stderr()
        run(make_server(http_app(server), "127.0.0.1", port))
