"""Many memories at once, written into the tables themselves: a hundred thousand turns would take minutes to tell."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

from agentmem import MemoryLLM, Scope
from agentmem.store import tally, text_digest
from agentmem.store.index import rebuild_texts
from agentmem.store.inputs import now_us
from agentmem.store.places import make_space
from agentmem.store.schema import EventRow, MemoryRow, MemoryUsage, Turn

MINUTE_US = 60_000_000


def text(n: int) -> str:
    return f"Note {n}: parcel {n * 7919 % 100_003} of shelf {n % 97} came on time."


def fill(llm: MemoryLLM, user: str, n: int) -> None:
    """Remember ``n`` notes of a user, one a minute up to now; every tenth was used, up to nine times."""
    with llm.store.write() as connection:
        now = now_us()
        space = make_space(connection, Scope(user=user), now)
        for table, rows in _rows(space, n, now):
            connection.execute(sa.insert(table), rows)
        tally.recount(connection)
        rebuild_texts(connection)


def _rows(space: int, n: int, now: int) -> Iterator[tuple[Any, list[dict[str, Any]]]]:
    at = {i: now - (n - i) * MINUTE_US for i in range(1, n + 1)}
    of = {"space_id": space, "session_id": None}
    yield Turn, [{"id": i, "uid": f"t{i}", "created_us": at[i], **of} for i in at]
    fixed = {"chunk_no": 0, "role": "user", "n_tokens": 12, "pinned": False, "meta": {}, **of}
    yield (
        MemoryRow,
        [
            {"id": i, "uid": f"m{i}", "turn_id": i, "created_us": at[i], "text": text(i), **fixed}
            | {"text_sha256": text_digest(text(i))}
            for i in at
        ],
    )
    uses = {i: i // 10 % 10 if i % 10 == 0 else 0 for i in at}
    yield (
        MemoryUsage,
        [
            {"memory_id": i, "uses": uses[i], "attention": 0.1 * uses[i], "score": float(uses[i]), "score_us": at[i]}
            | {"last_us": at[i] if uses[i] else None, "recent_turns": []}
            | {"recent_reads": [[at[i] + k, 0.1] for k in range(uses[i])]}
            for i in at
        ],
    )
    yield EventRow, [{"memory_uid": f"m{i}", "at_us": at[i], "action": "added", "reason": "", **of} for i in at]
