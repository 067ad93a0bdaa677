"""Errors as people see them on the command line: one line, no traceback."""

from __future__ import annotations

import errno
from typing import Any

import typer
from typer.core import TyperGroup

from agentmem.cli.output import note
from agentmem.errors import AgentMemError


class Commands(TyperGroup):
    """The root command: an error becomes one line on stderr and exit code 1; ``--debug`` shows its traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except (AgentMemError, OSError) as error:
            closed_pipe = isinstance(error, OSError) and error.errno == errno.EPIPE  # "| head": typer ends quietly
            if ctx.params.get("debug") or closed_pipe:
                raise
            note(f"error: {error}", style="bold red")
            raise typer.Exit(1) from None
