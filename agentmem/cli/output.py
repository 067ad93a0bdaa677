"""What is printed: results on stdout, notes on stderr, and never a control character of a model's or user's making."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import typer
from pydantic import BaseModel
from rich.bar import Bar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from agentmem.records import Memory

out = Console(highlight=False, markup=False, emoji=False)
"""Results."""
err = Console(stderr=True, highlight=False, markup=False, emoji=False)
"""Notes, progress, errors."""

_TURN_CHUNK = re.compile(r"([0-9a-f]{32})-(\d+)")
"""Ids as a conversation makes them: the turn's hash and the chunk's number."""
_SHORT = 8
"""Characters of the hash that tables show: 32 bits; an ambiguous one is refused when it is used."""


def plain(text: str) -> str:
    """The text without control characters (they could move the cursor, or hide text), but for tab and newline."""
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(c) == "Cc" and c not in "\n\t" else c for c in text
    )


def one_line(text: str) -> str:
    """The text with all white space collapsed, for a table's cell."""
    return " ".join(plain(text).split())


def note(text: str, *, style: str = "dim") -> None:
    """One note on stderr. Its lines are not broken, so that other programs can read them."""
    err.print(Text(plain(text), style=style), soft_wrap=True)


def print_json(value: Any) -> None:
    """The only thing on stdout, in ASCII, so that no terminal or locale can spoil it."""
    typer.echo(json.dumps(_as_json(value), indent=2))


def _as_json(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, dict):
        return {key: _as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(item) for item in value]
    return value


def short_id(id: str) -> str:
    """An id as tables show it; ``find`` in ``opening.py`` understands it."""
    match = _TURN_CHUNK.fullmatch(id)
    return f"{match[1][:_SHORT]}-{match[2]}" if match else plain(id)


def size(n: int) -> str:
    """A number of bytes in words."""
    amount = float(n)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def when(moment: datetime | None) -> str:
    """A moment in local time, to the minute."""
    return "" if moment is None else f"{moment.astimezone():%Y-%m-%d %H:%M}"


def percent(share: float) -> str:
    """A share of 1 as a percentage."""
    return f"{share:.1%}"


def share_bar(share: float) -> Bar:
    """A share of 1 as a bar."""
    return Bar(1.0, 0.0, min(max(share, 0.0), 1.0), width=16, color="cyan")


def grid(*columns: tuple[str, dict[str, Any]]) -> Table:
    """A table in our style. A column with a ratio gives way when the terminal is narrow; the others never do."""
    flexible = any("ratio" in options for _, options in columns)
    table = Table(box=None, pad_edge=False, header_style="bold", expand=flexible)
    for name, options in columns:
        table.add_column(name, **options)
    return table


def memory_table(memories: Sequence[Memory], scores: Sequence[float] | None = None) -> Table:
    """Memories, one line each; with ``scores``, best first."""
    right, whole = {"justify": "right", "no_wrap": True}, {"no_wrap": True}
    table = grid(
        ("Id", whole),
        *([("Score", right)] if scores is not None else []),
        ("Written", whole),
        ("Role", whole),
        ("Text", {"no_wrap": True, "overflow": "ellipsis", "ratio": 1}),
        ("Uses", right),
        ("KV", right),
    )
    for number, memory in enumerate(memories):
        table.add_row(
            Text(short_id(memory.id), style="cyan"),
            *([f"{scores[number]:.2f}"] if scores is not None else []),
            f"{memory.created_at.astimezone():%Y-%m-%d}",
            str(memory.role),
            Text(("\N{PUSHPIN} " if memory.pinned else "") + one_line(memory.text)),
            str(memory.uses),
            size(memory.kv_bytes) if memory.kv_bytes else str(memory.tier),
        )
    return table


def facts(rows: Sequence[tuple[str, Any]]) -> Table:
    """Names and values, one per line."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, Text(plain(str(value))))
    return table


def progress() -> Progress:
    """A progress bar on stderr, gone when done; nothing where stderr is no terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    )
