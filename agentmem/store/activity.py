"""What happened in a scope over time, and how its uses are spread: from the audit and the counters, in few queries."""

from __future__ import annotations

from collections import Counter

import sqlalchemy as sa

from agentmem.records import Activity, Period, Scope, UsesCount
from agentmem.store.inputs import from_us, now_us
from agentmem.store.places import find_place
from agentmem.store.retry import retried
from agentmem.store.schema import EventRow, MemoryRow, MemoryUsage
from agentmem.store.store import Store

MOST_PERIODS = 90
_MINUTE, _HOUR, _DAY = 60, 3600, 86_400
WIDTHS = (_MINUTE, 5 * _MINUTE, 15 * _MINUTE, _HOUR, 6 * _HOUR, _DAY, 7 * _DAY, 28 * _DAY, 364 * _DAY)
"""Lengths of a period in seconds: the shortest with which everything fits into MOST_PERIODS is taken."""

_COUNTED = ("added", "deleted", "evicted", "kv_dropped")


@retried
def activity(store: Store, scope: Scope) -> Activity:
    """See ``Memories.activity``."""
    store.flush_uses()
    now = now_us()
    with store.database.read() as connection:
        place = find_place(connection, scope)
        if place is None:
            return Activity(period_seconds=WIDTHS[0], periods=(), uses=())
        mine = [EventRow.space_id == place.space_id]
        if place.session_id is not None:
            mine.append(EventRow.session_id == place.session_id)
        first = connection.scalar(sa.select(sa.func.min(EventRow.at_us)).where(*mine))
        by_uses = dict(
            connection.execute(
                sa.select(MemoryUsage.uses, sa.func.count())
                .join(MemoryRow, MemoryRow.id == MemoryUsage.memory_id)
                .where(*place.conditions())
                .group_by(MemoryUsage.uses)
            ).all()
        )
        first = now if first is None else min(first, now)
        width = _width(now - first)
        number = (EventRow.at_us // width).label("number")
        counts = connection.execute(
            sa.select(number, EventRow.action, sa.func.count())
            .where(*mine, EventRow.action.in_(_COUNTED))
            .group_by(number, EventRow.action)
        ).all()
    by_period: dict[int, Counter[str]] = {}
    for n, action, count in counts:
        # What is dated by a clock that was ahead happened by now.
        by_period.setdefault(min(n, now // width), Counter())[action] += count
    periods = _periods(by_period, range(first // width, now // width + 1), width, sum(by_uses.values()))
    return Activity(period_seconds=width // 1_000_000, periods=periods, uses=_spread(by_uses))


def _width(span_us: int) -> int:
    """Microseconds of a period."""
    return next((w for w in WIDTHS if span_us < (MOST_PERIODS - 1) * w * 1_000_000), WIDTHS[-1]) * 1_000_000


def _periods(by_period: dict[int, Counter[str]], numbers: range, width: int, held: int) -> tuple[Period, ...]:
    """Every period. Counted back from what is there now: true also where the audit begins later than the memories."""
    periods = []
    for n in reversed(numbers):
        happened = by_period.get(n, Counter())
        periods.append(
            Period(start=from_us(n * width), memories=max(held, 0), **{name: happened[name] for name in _COUNTED})
        )
        held -= happened["added"] - happened["deleted"] - happened["evicted"]
    return tuple(reversed(periods))


def _spread(by_uses: dict[int, int]) -> tuple[UsesCount, ...]:
    """Memories by count of uses: 0, 1, 2 to 3, 4 to 7 and so on, up to the largest that there is."""
    bins: Counter[int] = Counter()
    for uses, memories in by_uses.items():
        bins[uses.bit_length()] += memories
    return tuple(
        UsesCount(least=2 ** (bits - 1) if bits else 0, most=2**bits - 1, memories=bins[bits])
        for bits in range(max(bins, default=-1) + 1)
    )
