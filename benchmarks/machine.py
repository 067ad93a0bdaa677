"""Where reports are printed."""

from __future__ import annotations

from rich.console import Console


def console() -> Console:
    """Wide enough for the tables when it is not a terminal."""
    found = Console()
    return found if found.is_terminal else Console(width=120)
