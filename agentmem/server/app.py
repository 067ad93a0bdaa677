"""The application: its parts put together."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.routing import Route

from agentmem.llm import MemoryLLM
from agentmem.server import (
    chat,
    embeddings,
    failures,
    health,
    memories,
    models,
    page,
    reach,
    responses,
    stored_responses,
)
from agentmem.server.access import Door
from agentmem.server.hosts import KnownHosts
from agentmem.server.keys import KeyFile
from agentmem.server.limits import Limits
from agentmem.server.mcp_route import PATH, McpRoute
from agentmem.server.observe import Metrics, Observed
from agentmem.server.patience import Patience
from agentmem.server.serving import Gone, Host
from agentmem.server.worker import Worker

log = logging.getLogger(__name__)

LOOKUPS = 4
"""Searches, additions and embeddings that are done at once, beside the answers."""


def make_app(
    llm: MemoryLLM, *, keys: KeyFile | None = None, hosts: Sequence[str] = ("*",), limits: Limits | None = None
) -> FastAPI:
    """The application that serves ``llm``; whoever runs it closes ``llm`` after it.

    Args:
        llm: the model and its store.
        keys: who may come in; None lets everyone in as every user, for a server that only this machine reaches.
        hosts: names under which the server may be addressed, against DNS rebinding; "*" for any.
        limits: what one client may ask for.
    """
    limits = limits or Limits()
    metrics = Metrics(lambda: answers.waiting + lookups.waiting)
    bounds: dict[str, Any] = {"per_caller": limits.per_caller, "in_all": limits.in_all}
    answers = Worker(threads=limits.at_once, waited=metrics.waited.observe, **bounds)
    lookups = Worker(threads=LOOKUPS, waited=metrics.waited.observe, **bounds)

    door = Door(keys, limits.rate_item)
    mcp = McpRoute(llm, door, hosts)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with mcp.running():
            yield
        for worker in (answers, lookups):
            await run_in_threadpool(worker.close)

    app = FastAPI(
        title="agentmem",
        summary="A memory that lasts, for local language models.",
        version=version("agentmem-kv"),
        lifespan=lifespan,
        generate_unique_id_function=lambda route: route.name,  # names of a generated client's methods
        docs_url=None,  # its page would load scripts from another host
        redoc_url=None,
        # Our own (``observe``): FastAPI's would carry query strings, and messages of errors.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
        responses={code: {"model": failures.ErrorReply} for code in (400, 401, 403, 408, 413, 429, 500, 503)},
    )
    app.state.door = door
    app.state.host = Host(llm, answers, lookups, metrics)
    failures.install(app)

    @app.exception_handler(Gone)
    async def gone(request: Request, error: Gone) -> Response:
        return Response(status_code=499)

    for part in (chat, responses, stored_responses, embeddings, models, memories, reach, health, page):
        app.include_router(part.router)
    app.mount(page.ASSETS, page.Assets())
    app.router.routes.append(Route(PATH, mcp))
    app.add_middleware(Patience, most=limits.max_body, seconds=limits.body_seconds)
    app.add_middleware(KnownHosts, names=hosts)
    app.add_middleware(Observed, metrics=metrics)
    return app
