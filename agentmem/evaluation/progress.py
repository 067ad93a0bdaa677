"""How a task tells whoever waits for it how far it is."""

from __future__ import annotations

from collections.abc import Callable

Advance = Callable[[str, int, int], None]
"""Called as ``advance(what, done, total)`` while work goes on: the name of a bar, and how much of it is done so far."""


def silent(what: str, done: int, total: int) -> None:
    """Tells nobody."""
