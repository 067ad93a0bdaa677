"""Whoever imports this has no network but the machine's own: a pytest plugin, and for other processes a switch.

A framework that looks a name up or connects to anywhere gets an error, so a telemetry that nobody asked for fails the
test that runs into it. The hook cannot be taken off again.
"""

from __future__ import annotations

import os
import socket
import sys

os.environ["HF_HUB_OFFLINE"] = "1"

_LOCAL = {"127.0.0.1", "::1", "localhost", None, "", b"", b"localhost"}


class NetworkUsed(BaseException):
    """Not an ``Exception``: what reports home in secret is quick to catch those."""


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    if event == "socket.getaddrinfo":
        host = arguments[0]
    elif event == "socket.connect" and arguments[0].family in (socket.AF_INET, socket.AF_INET6):  # type: ignore[attr-defined]
        host = arguments[1][0]  # type: ignore[index]
    else:
        return
    if host not in _LOCAL:
        raise NetworkUsed(f"{event}: {host!r} was asked for; adapters run with the network cut")


sys.addaudithook(_watch)
