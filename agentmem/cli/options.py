"""Options that several commands share."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import typer
from pydantic import ByteSize, TypeAdapter, ValidationError

from agentmem.records import Role, Tier

DEFAULT_STORE = "memory.db"
DEFAULT_USER = "me"

StorePath = Annotated[
    str,
    typer.Option(
        "--store",
        envvar="AGENTMEM_STORE",
        help="File of the store, or postgresql://user:password@host/database.",
        metavar="STORE",
    ),
]
User = Annotated[str, typer.Option("--user", envvar="AGENTMEM_USER", help="Whose memories.")]
Agent = Annotated[str, typer.Option("--agent", help="The agent that they belong to.", show_default="none")]
Session = Annotated[str | None, typer.Option("--session", help="Only this session.")]
Model = Annotated[
    str | None,
    typer.Option(
        "--model", envvar="AGENTMEM_MODEL", help="Hugging Face id or local folder.", show_default="the bundled model"
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, and nothing else there.")]
Ids = Annotated[list[str], typer.Argument(metavar="ID", help="Ids, whole or as the tables shorten them.")]

RoleFilter = Annotated[Role | None, typer.Option("--role", help="Only what this role said.")]
TagFilter = Annotated[
    list[str] | None, typer.Option("--tag", metavar="TAG", help="Only with this tag; may be repeated.")
]
TierFilter = Annotated[Tier | None, typer.Option("--tier", help="Only with KV on disk (warm) or without (cold).")]
Since = Annotated[datetime | None, typer.Option("--since", help="Only written at or after this local time.")]
Until = Annotated[datetime | None, typer.Option("--until", help="Only written before this local time.")]
Pinned = Annotated[bool | None, typer.Option("--pinned/--unpinned", help="Only pinned, or only unpinned ones.")]
MinUses = Annotated[int | None, typer.Option("--min-uses", help="Only read in at least this many turns.")]


def filters(
    role: Role | None,
    tags: list[str] | None,
    tier: Tier | None,
    since: datetime | None,
    until: datetime | None,
    pinned: bool | None,
    min_uses: int | None,
) -> dict[str, Any]:
    """The filters that were given, as the store takes them. Times without a zone are local."""
    given = {
        "role": role,
        "tags": tags or None,
        "tier": tier,
        "since": since and since.astimezone(),
        "until": until and until.astimezone(),
        "pinned": pinned,
        "min_uses": min_uses,
    }
    return {name: value for name, value in given.items() if value is not None}


def byte_size(text: str) -> int:
    """``500MB``, ``2GiB`` or a plain number, in bytes."""
    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        raise typer.BadParameter(f"{text!r} is not a size; write for example 500MB, 2GiB or 1000000") from None
