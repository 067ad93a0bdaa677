"""Write ``docs/cli.md`` from what every command itself prints for ``--help``.

``python docs/build_cli.py`` writes it, ``python docs/build_cli.py --check`` fails when it is stale.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import typer
from typer.core import TyperGroup
from typer.testing import CliRunner

from agentmem.cli import app

PAGE = Path(__file__).parent / "cli.md"
TERMINAL = {"COLUMNS": "100", "TERM": "xterm"}
STYLE = re.compile(r"\x1b\[[0-9;]*m")
"""One width and no styles, so that the page is the same wherever it is made (a CI's variables may force colours)."""
INTRODUCTION = """# The `agentmem` command

This page is made from the program's own help: `make docs` writes it anew, and a test fails when it is stale.

Results go to standard output, notes, progress and errors to standard error. `--json` prints one JSON document and
nothing else. The exit code is 0 when it is done, 1 for an error or a failed check, 2 for a usage error. Commands that
need no language model (`memories list`, `show`, `pin`, `unpin`, `delete`, `prune`, `stats`, `verify`, `export`) load
none.
"""


def commands(group: TyperGroup, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Path of every command that is not hidden, groups before their members."""
    yield path
    for name, command in group.commands.items():
        if command.hidden:
            continue
        if isinstance(command, TyperGroup):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name)


def page() -> str:
    """The whole page."""
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    parts = [INTRODUCTION]
    for path in commands(group):
        shown = CliRunner().invoke(app, [*path, "--help"], prog_name="agentmem", env=TERMINAL)
        assert shown.exit_code == 0, shown.output
        help_text = "\n".join(line.rstrip() for line in STYLE.sub("", shown.stdout).strip().splitlines())
        parts.append(f"## `{' '.join(('agentmem', *path))}`\n\n```text\n{help_text}\n```\n")
    return "\n".join(parts)


def main() -> int:
    """0 when the page is written, or (with ``--check``) already right."""
    if sys.argv[1:] == ["--check"]:
        if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == page():
            return 0
        print(f"{PAGE.name} is stale: run `make docs`", file=sys.stderr)
        return 1
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
