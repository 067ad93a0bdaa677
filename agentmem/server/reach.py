"""``/v1/access``: what the caller may reach, as far as the key itself says."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel

from agentmem.server.access import DEFAULT_USER, Admitted
from agentmem.server.keys import ANY, Grant

router = APIRouter(prefix="/v1", tags=["operation"])


class Access(BaseModel):
    """Who asks, and whose memories they may name."""

    key: str | None
    """The key's name; null on a server without keys."""
    grants: list[Grant]
    """Users and agents; ``*`` is every one."""
    user: str | None
    """Who is meant where a request names nobody; null: it has to name one."""


@router.get("/access")
async def access(caller: Admitted) -> Access:
    """What the key that is sent reaches. Says nothing of what is there."""
    if caller.key is None:
        return Access(key=None, grants=[Grant(user=ANY, agent=ANY)], user=DEFAULT_USER)
    first = caller.key.grants[0].user
    return Access(key=caller.key.name, grants=list(caller.key.grants), user=None if first == ANY else first)
