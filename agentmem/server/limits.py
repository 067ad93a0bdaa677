"""What one client may ask of the server."""

from __future__ import annotations

from dataclasses import dataclass

from limits import RateLimitItem, parse

from agentmem.errors import InvalidInput


@dataclass(frozen=True)
class Limits:
    """What one client may ask of the server.

    ``rate`` is requests per key (or address), as ``limits`` writes it ("600/minute"); None for no limit. ``max_body``
    is in bytes, ``body_seconds`` the time a request's body may take. ``per_caller`` and ``in_all`` are requests that
    wait for the model, of one user and of all; ``at_once`` are answers that it writes at the same time.
    """

    rate: str | None = "600/minute"
    max_body: int = 8 * 2**20
    body_seconds: float = 30.0
    per_caller: int = 16
    in_all: int = 256
    at_once: int = 16

    @property
    def rate_item(self) -> RateLimitItem | None:
        """The rate, read. Raises InvalidInput for what is none."""
        if self.rate is None:
            return None
        try:
            return parse(self.rate)
        except ValueError as error:
            raise InvalidInput(f"{self.rate!r} is no rate; write for example 600/minute or 10/second") from error
