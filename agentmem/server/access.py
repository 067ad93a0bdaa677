"""Who asks, and whose memories are meant: decided from the request alone, before anything is looked up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Header, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from limits import RateLimitItem
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import MovingWindowRateLimiter
from pydantic import ValidationError

from agentmem.records import Scope
from agentmem.server.failures import Failure
from agentmem.server.keys import ANY, Key, KeyFile

DEFAULT_USER = "me"
"""Whose memories are meant on a server without keys when a request names nobody."""
USER, AGENT, SESSION = "x-agentmem-user", "x-agentmem-agent", "x-agentmem-session"

_bearer = HTTPBearer(auto_error=False, description="A key of `agentmem keys add`; none on a server without keys.")


@dataclass(frozen=True)
class Caller:
    """Who sent a request, and what the headers say about the scope."""

    name: str
    """The key's name; the client's address where there are no keys."""
    key: Key | None
    user: str | None
    agent: str | None
    session: str | None

    def scope(self, user: str | None = None) -> Scope:
        """Whose memories a request means: the header's user, else ``user`` (a field of its body), else the key's own.

        Raises:
            Failure: 403 for a scope that the key does not reach, whether or not there is such a scope; 400 for names
                that cannot be used.
        """
        first = None if self.key is None else self.key.grants[0]
        named = self.user or user or (DEFAULT_USER if first is None else first.user)
        agent = self.agent if self.agent is not None else "" if first is None or first.agent == ANY else first.agent
        if self.key is not None:
            if named == ANY and not (self.user or user):
                message = f"this key reaches many users; name one, in the field user or the header {USER}"
                raise Failure(400, message, code="user_missing", param="user")
            if not self.key.covers(named, agent):
                raise Failure(403, "this key does not reach these memories", code="scope_denied", param="user")
        try:
            Scope(user=named, agent=agent, session=self.session)
        except ValidationError as error:
            raise Failure(400, _why(error), code="invalid_scope", param=str(error.errors()[0]["loc"][0])) from None
        return Scope(user=named, agent=agent)


class Door:
    """Checks every request: its key, and how many came before it."""

    def __init__(self, keys: KeyFile | None, rate: RateLimitItem | None) -> None:
        self._keys, self._rate = keys, rate
        self._limiter = MovingWindowRateLimiter(MemoryStorage())

    async def admit(self, request: Request, token: str | None) -> Caller:
        """The caller.

        Raises:
            Failure: 401 without a good key, 429 for too many requests, 400 for a header that is no text.
        """
        address = request.client.host if request.client else "?"
        key = None
        if self._keys is not None:
            key = None if token is None else self._keys.find(token)
            if key is None:
                await self._count(f"refused {address}")
                raise Failure(401, "a valid API key is needed: Authorization: Bearer am-...", code="invalid_api_key")
        name = address if key is None else key.name
        await self._count(f"caller {name}")
        user, agent, session = (_text(request, header) for header in (USER, AGENT, SESSION))
        request.state.caller = name
        return Caller(name, key, user or None, agent, session or None)

    async def _count(self, who: str) -> None:
        if self._rate is not None and not await self._limiter.hit(self._rate, who):
            message = f"more requests than {self._rate}; try again later"
            raise Failure(429, message, code="rate_limit_exceeded", retry_after=self._rate.get_expiry())


def _text(request: Request, header: str) -> str | None:
    """A header as UTF-8 text."""
    values = request.headers.getlist(header)
    if len(values) > 1:
        raise Failure(400, f"the header {header} is given twice", code="invalid_header", param=header)
    try:
        return values[0].encode("latin-1").decode() if values else None
    except UnicodeDecodeError:
        raise Failure(400, f"the header {header} is not UTF-8", code="invalid_header", param=header) from None


def _why(error: ValidationError) -> str:
    return str(error.errors()[0]["msg"]).removeprefix("Value error, ")


async def admitted(
    request: Request,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
    user: Annotated[str | None, Header(alias=USER, description="Whose memories.")] = None,
    agent: Annotated[str | None, Header(alias=AGENT, description="The agent that they belong to.")] = None,
    session: Annotated[str | None, Header(alias=SESSION, description="Name of the dialogue.")] = None,
) -> Caller:
    """The caller of this request. The headers stand here for the schema; ``Door`` reads them as UTF-8."""
    door: Door = request.app.state.door
    return await door.admit(request, None if credentials is None else credentials.credentials)


Admitted = Annotated[Caller, Depends(admitted)]
