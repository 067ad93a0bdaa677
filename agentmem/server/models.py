"""``/v1/models``: the one model that is served."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel

from agentmem.server.access import Admitted
from agentmem.server.serving import Host, host_of

router = APIRouter(prefix="/v1", tags=["openai"])


class Model(BaseModel):
    """A model, in OpenAI's form."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "agentmem"


class Models(BaseModel):
    """All models."""

    object: Literal["list"] = "list"
    data: list[Model]


def _model(host: Host) -> Model:
    return Model(id=host.llm.name)


@router.get("/models")
async def models(request: Request, caller: Admitted) -> Models:
    """The models there are: one."""
    return Models(data=[_model(host_of(request))])


@router.get("/models/{id:path}")
async def model(request: Request, id: str, caller: Admitted) -> Model:
    """One model; 404 for another name."""
    host = host_of(request)
    host.check_model(id)
    return _model(host)
