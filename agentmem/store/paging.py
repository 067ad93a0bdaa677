"""Lists page by page: each page begins where the one before it ended, however much was written or deleted meanwhile."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from agentmem.errors import InvalidInput
from agentmem.records import Memory, Scope
from agentmem.store.inputs import check_int, now_us
from agentmem.store.places import find_place
from agentmem.store.retry import retried
from agentmem.store.rows import Filters, filter_conditions, memories_of, order_by
from agentmem.store.schema import MemoryRow, MemoryUsage
from agentmem.store.store import Store


@retried
def page(
    store: Store, scope: Scope, *, sort: str, limit: int, cursor: str | None, filters: Filters
) -> tuple[list[Memory], str | None]:
    """At most ``limit`` memories in order, and the cursor of what follows them (None at the end).

    Ties are broken by time of writing, place within the turn, and id. A cursor holds nothing that a memory itself does
    not show.

    Raises:
        InvalidInput: a sort key or filter that does not exist, or a cursor of another list.
    """
    check_int(limit, "limit", 1)
    now, at = _parse(cursor, sort) if cursor is not None else (now_us(), None)
    half_life_us = store.policy.half_life_us
    conditions = filter_conditions(filters)
    key = order_by(sort, now, half_life_us)[0].element  # without its direction
    tie = (MemoryRow.created_us, MemoryRow.chunk_no, MemoryRow.uid)
    columns: tuple[Any, ...] = (key, *tie)
    by_time = sort.removeprefix("-") == "created_at"
    if by_time:  # once: the database's index of times has this order already
        columns = tie
    down = sort.startswith("-")
    store.flush_uses()
    with store.database.read() as connection:
        place = find_place(connection, scope)
        if place is None:
            return [], None
        # Keys first: what is sorted are narrow rows, and texts are read of one page only.
        query = sa.select(MemoryRow.id, key.label("sorted_by"), *tie).where(*place.conditions(), *conditions)
        if not by_time:
            query = query.join(MemoryUsage, MemoryUsage.memory_id == MemoryRow.id)
        if at is not None:
            query = query.where(_beyond(columns, at[1:] if by_time else at, down))
        order = [column.desc() if down else column.asc() for column in columns]
        rows = connection.execute(query.order_by(*order).limit(limit + 1)).all()
        found = memories_of(connection, [row.id for row in rows[:limit]], scope, now, half_life_us)
    memories = [found[row.id] for row in rows[:limit]]
    if len(rows) <= limit:
        return memories, None
    last = rows[limit - 1]
    return memories, _write(sort, now, [last.sorted_by, last.created_us, last.chunk_no, last.uid])


def _beyond(columns: Sequence[Any], at: Sequence[Any], down: bool) -> sa.ColumnElement[bool]:
    """Rows that come after ``at`` in the order of the columns. Their first one alone narrows, so an index can help."""
    within = columns[0] <= at[0] if down else columns[0] >= at[0]
    steps = []
    for i, (column, value) in enumerate(zip(columns, at, strict=True)):
        same = [earlier == other for earlier, other in zip(columns[:i], at[:i], strict=True)]
        steps.append(sa.and_(*same, column < value if down else column > value))
    return sa.and_(within, sa.or_(*steps))


def _write(sort: str, now: int, at: list[Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps([sort, now, *at]).encode()).decode().rstrip("=")


def _parse(cursor: str, sort: str) -> tuple[int, list[Any]]:
    """The moment that the list began at (frequencies age), and the last row's place."""
    try:
        told = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        began, now, value, created, chunk_no, uid = told
    except (ValueError, TypeError) as error:
        raise InvalidInput("the cursor is none that a list gave; begin again without one") from error
    numbers = (now, value, created, chunk_no)
    whole = all(isinstance(n, int) and abs(n) < 2**62 for n in (now, created, chunk_no))
    if (
        not whole
        or any(isinstance(n, bool) for n in numbers)
        or not isinstance(value, int | float)
        or not (math.isfinite(value) and abs(value) < 2**62)
        or not isinstance(uid, str)
        or "\x00" in uid
        or not uid.isprintable()
    ):
        raise InvalidInput("the cursor is none that a list gave; begin again without one")
    if began != sort:
        raise InvalidInput(f"the cursor is of a list sorted by {began!r:.40}, not {sort!r}; begin again without one")
    return now, [value, created, chunk_no, uid]
