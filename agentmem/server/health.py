"""``/healthz`` and ``/metrics``."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel

from agentmem.server.access import Admitted
from agentmem.server.failures import Failure
from agentmem.server.serving import host_of

router = APIRouter(tags=["operation"])


class Health(BaseModel):
    """The server is up."""

    status: Literal["ok"] = "ok"


@router.get("/healthz")
async def healthz() -> Health:
    """Whether the server is up. Open to everyone; says nothing else."""
    return Health()


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(request: Request, caller: Admitted) -> Response:
    """Figures for Prometheus. They are about all users: with keys, only one that reaches every user may see them."""
    if caller.key is not None and not caller.key.everything:
        raise Failure(403, "a key that reaches every user is needed", code="scope_denied")
    return Response(generate_latest(host_of(request).metrics.registry), media_type=CONTENT_TYPE_LATEST)
