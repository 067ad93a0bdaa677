"""Running the application: one process, one model, until it is told to stop."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import signal
import sys

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from agentmem.errors import InvalidInput
from agentmem.server.observe import JsonLines

HEADER_SECONDS = 15.0
"""A connection that has not sent a request's headers by then is closed."""
CONNECTIONS = 1000
"""More at once are answered 503."""
DRAIN_SECONDS = 60
"""Requests under way have so long to end when the server is told to stop."""


class PatientProtocol(H11Protocol):
    """HTTP/1.1 that does not wait for ever for a client's first headers."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client came."""
        super().connection_made(transport)
        asyncio.get_running_loop().call_later(HEADER_SECONDS, self._close_if_silent, transport)

    def _close_if_silent(self, transport: asyncio.Transport) -> None:
        if self.cycle is None:
            transport.close()


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server at this address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_address(host: str, *, keys: bool) -> None:
    """Raises InvalidInput for an address that others can reach, on a server without keys."""
    if not keys and not is_loopback(host):
        raise InvalidInput(
            f"{host} can be reached from other machines, and without keys everyone may read every memory: make a key "
            "(agentmem keys add) and give the file with --keys, or listen on 127.0.0.1"
        )


def own_names(host: str, *, keys: bool) -> list[str]:
    """Names under which a server may be addressed: without keys this machine's, so that no page in a browser here
    reaches it under a name of its own (DNS rebinding); with keys any, a proxy's for example."""
    return ["*"] if keys else ["localhost", "127.0.0.1", "[::1]", host]


def make_server(app: Starlette, host: str, port: int) -> uvicorn.Server:
    """A server, not yet running; port 0 takes a free one."""
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=PatientProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # who asks is the address that connected, not what a header says
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )
    # It writes whole paths with their queries; ours (``observe``) does not.
    logging.getLogger("uvicorn.access").disabled = True
    return uvicorn.Server(config)


def run(server: uvicorn.Server) -> None:
    """Run until SIGTERM or Ctrl-C; what was begun is finished, and then the caller goes on: it closes the store.

    Uvicorn raises a signal again once it is done, for whoever it was meant for besides. Nobody: without this the
    process would end of it there, with a store that is open and an exit status that tells of failure.
    """
    signal.signal(signal.SIGTERM, server.handle_exit)
    server.run()


def log_to_stderr() -> None:
    """One line of JSON per record, on standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    for name in ("httpx", "httpcore", "urllib3", "filelock", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
