"""Who goes, and why: pure functions over candidates. The store asks them and carries out the answer.

Usage frequency is what MemLong's counters intend: reads, weighted by the attention share they received, so that what
is read often stays; aged by a half-life, so that old fame fades. Pinned memories never go. New ones go last.
MemLong's own rule, least recently used, and first in first out are there to compare with (``EvictionPolicy.order``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import chain, islice
from typing import Literal, get_args

from agentmem.errors import InvalidInput
from agentmem.records import Pruned


@dataclass(frozen=True)
class Candidate:
    """What a policy may look at."""

    key: int
    """The database's own id."""
    id: str
    frequency: float
    created_us: int
    last_us: int | None
    kv_bytes: int
    pinned: bool
    stream: bool = False
    """A session's stream, not a memory: ``key`` is the stream's, ``id`` the session's name, and it was last continued
    at ``last_us``."""
    uses: int = 0
    """Turns in which it was read, neither weighted nor aged."""


OrderName = Literal["lfu", "memlong", "lru", "fifo"]


@dataclass(frozen=True)
class EvictionPolicy:
    """Budgets, who goes first, and how fame fades.

    A budget of None is no limit; ``space`` budgets hold for each (user, agent). ``order``: "lfu" goes by
    usage frequency; "memlong" by plain counts of uses, with MemLong's dynamic update when there are too many memories
    (see ``counter_update``; it makes room for as many again); "lru" by the last write or read; "fifo" by age.
    """

    space_kv_bytes: int | None = 4 * 2**30
    total_kv_bytes: int | None = 16 * 2**30
    space_memories: int | None = 100_000
    total_memories: int | None = 1_000_000
    half_life: timedelta = timedelta(days=30)
    grace: timedelta = timedelta(hours=1)
    """Younger memories go only when nothing older is left to go (order "lfu")."""
    order: OrderName = "lfu"

    def __post_init__(self) -> None:
        for name in ("space_kv_bytes", "total_kv_bytes", "space_memories", "total_memories"):
            budget = getattr(self, name)
            if budget is not None and (isinstance(budget, bool) or not isinstance(budget, int) or budget < 0):
                raise InvalidInput(f"{name} must be a whole number from 0, or None for no limit, not {budget!r}")
        if self.order not in get_args(OrderName):
            raise InvalidInput(f"order must be one of {', '.join(get_args(OrderName))}, not {self.order!r}")
        if self.half_life <= timedelta(0):
            raise InvalidInput(f"half_life must be positive, not {self.half_life}")
        if self.grace < timedelta(0):
            raise InvalidInput(f"grace must not be negative, not {self.grace}")

    @property
    def half_life_us(self) -> int:
        """Half-life in microseconds."""
        return self.half_life // timedelta(microseconds=1)

    @property
    def grace_us(self) -> int:
        """Grace period in microseconds."""
        return self.grace // timedelta(microseconds=1)


def decayed(score: float, score_us: int, now_us: int, half_life_us: int) -> float:
    """A frequency of time ``score_us`` as of now. A clock set back does not make it grow."""
    return float(score * 2.0 ** (-max(0, now_us - score_us) / half_life_us))


def credited(score: float, score_us: int, now_us: int, half_life_us: int, share: float) -> float:
    """The frequency after one more read that received ``share`` (0..1) of the attention."""
    return decayed(score, score_us, now_us, half_life_us) + 1.0 + share


MOST_SPARE = 500
"""Memories that an eviction makes room for, at most. Each takes about a millisecond to leave."""


def low_water(budget: int) -> int:
    """Where an eviction stops: 5 % below the budget, so that a full store does not evict at every write."""
    return budget - budget // 20


def count_target(budget: int) -> int:
    """Where an eviction of memories stops: they leave every index too, and other writers wait until they have."""
    return max(low_water(budget), budget - MOST_SPARE)


def kv_target(budget: int, policy: EvictionPolicy) -> int:
    """Where an eviction of KV stops: MemLong's rule clears half of it at a time, the others make a little room."""
    return budget // 2 if policy.order == "memlong" else low_water(budget)


def least_frequent(candidates: Iterable[Candidate], policy: EvictionPolicy, now_us: int) -> list[Candidate]:
    """First to go first: by frequency, then oldest. Pinned ones are left out; new ones come last."""

    def order(candidate: Candidate) -> tuple[bool, float, int, int]:
        # Of a date in the future: dated by a clock that has been set back since, and not new for ever.
        new = abs(now_us - candidate.created_us) < policy.grace_us
        return new, candidate.frequency, candidate.created_us, candidate.key

    return sorted((c for c in candidates if not c.pinned), key=order)


def with_streams(
    memories: Iterable[Candidate], streams: list[Candidate], policy: EvictionPolicy, now_us: int
) -> Iterator[Candidate]:
    """The order in which KV goes: streams continued longest ago first, those continued within the grace period last."""
    ordered = sorted(streams, key=lambda stream: (stream.last_us or 0, stream.key))
    in_use = [stream for stream in ordered if abs(now_us - (stream.last_us or 0)) < policy.grace_us]
    return chain((stream for stream in ordered if stream not in in_use), memories, in_use)


def least_recent(candidates: Iterable[Candidate], policy: EvictionPolicy, now_us: int) -> list[Candidate]:
    """First to go first: by when it was last written or read. Pinned ones are left out."""
    unpinned = (c for c in candidates if not c.pinned)
    return sorted(unpinned, key=lambda c: (max(c.created_us, c.last_us or 0), c.key))


def oldest(candidates: Iterable[Candidate], policy: EvictionPolicy, now_us: int) -> list[Candidate]:
    """First to go first: by when it was written. Pinned ones are left out."""
    return sorted((c for c in candidates if not c.pinned), key=lambda c: (c.created_us, c.key))


def counted(candidates: Iterable[Candidate], policy: EvictionPolicy, now_us: int) -> list[Candidate]:
    """First to go first, after MemLong: the oldest tenth, then by count of uses and age, the newest tenth last."""
    by_age = oldest(candidates, policy, now_us)
    tenth = len(by_age) // 10
    middle = by_age[tenth : len(by_age) - tenth]
    newest = by_age[len(by_age) - tenth :]
    return [*by_age[:tenth], *sorted(middle, key=lambda c: (c.uses, c.created_us, c.key)), *newest]


def counter_update(uses: Sequence[int]) -> list[int]:
    """MemLong's counter-based dynamic update (arXiv 2408.16967): who goes when the memory is full.

    The oldest tenth goes and the newest tenth (at least one of several) stays. Of those between, all with the lowest
    count of uses go, then all with the next count, until at least half of everything is gone. A count goes as a whole,
    so it may be more.

    Args:
        uses: how often each entry was read, oldest entry first.

    Returns:
        Places of those that go, ascending.
    """
    n = len(uses)
    tenth = n // 10
    # Of fewer than ten, a tenth is none: what was just written stays all the same.
    middle = range(tenth, n - max(tenth, min(1, n - 1)))
    gone = list(range(tenth))
    for count in sorted({uses[at] for at in middle}):
        if 2 * len(gone) >= n:
            break
        gone += [at for at in middle if uses[at] == count]
    return sorted(gone)


Order = Callable[[Iterable[Candidate], EvictionPolicy, int], list[Candidate]]
ORDERS: dict[OrderName, Order] = {
    "lfu": least_frequent,
    "memlong": counted,
    "lru": least_recent,
    "fifo": oldest,
}


def in_order(candidates: Iterable[Candidate], policy: EvictionPolicy, now_us: int) -> list[Candidate]:
    """First to go first, in the policy's order. Pinned ones are left out."""
    return ORDERS[policy.order](candidates, policy, now_us)


def over_kv(
    candidates: Iterable[Candidate],
    budget: int,
    target: int,
    used: int,
    name: str,
    by: OrderName = "lfu",
    among: int | None = None,
) -> list[tuple[Candidate, Pruned]]:
    """When ``used`` bytes are over ``budget``: drop KV, in the order of ``candidates``, down to ``target`` bytes.

    ``candidates`` are memories and streams (``with_streams``), of which no more are drawn than go; ``by`` says what
    ordered them and ``among`` how many memories there were to choose from, for the reasons (None: count them).
    """
    chosen: list[tuple[Candidate, Pruned]] = []
    if used <= budget:
        return chosen
    over = f"{name} of {budget:,} bytes exceeded by {used - budget:,}"
    if among is None:
        candidates = list(candidates)
        among = sum(not candidate.stream for candidate in candidates)
    rank, drawn = 0, iter(candidates)
    while used > target and (candidate := next(drawn, None)) is not None:
        if candidate.stream:
            chosen.append((candidate, _pruned(candidate, "drop_stream", f"a session's stream; {over}")))
        elif candidate.kv_bytes:
            chosen.append((candidate, _pruned(candidate, "drop_kv", _why(candidate, rank, among, over, by))))
        used -= candidate.kv_bytes
        rank += not candidate.stream
    return chosen


def over_count(
    candidates: Iterable[Candidate],
    budget: int,
    target: int,
    used: int,
    name: str,
    by: OrderName = "lfu",
    among: int | None = None,
) -> list[tuple[Candidate, Pruned]]:
    """When ``used`` memories are over ``budget``: delete, in the order of ``candidates``, down to ``target``.

    ``by`` and ``among`` as in ``over_kv``.
    """
    if used <= budget:
        return []
    over = f"{name} of {budget:,} exceeded by {used - budget:,}"
    if among is None:
        candidates = list(candidates)
        among = len(candidates)
    return [
        (candidate, _pruned(candidate, "delete", _why(candidate, rank, among, over, by)))
        for rank, candidate in enumerate(islice(candidates, used - target))
    ]


def over_count_memlong(
    candidates: list[Candidate], budget: int, policy: EvictionPolicy, now_us: int, name: str
) -> list[tuple[Candidate, Pruned]]:
    """When there are more than ``budget`` memories: MemLong's update of the unpinned ones, until the budget holds."""
    left = oldest(candidates, policy, now_us)
    pinned = len(candidates) - len(left)
    over = f"{name} of {budget:,} exceeded by {len(candidates) - budget:,}"
    chosen: list[tuple[Candidate, Pruned]] = []
    while left and pinned + len(left) > budget:
        gone = set(counter_update([candidate.uses for candidate in left]))
        why = f"counter-based update of {len(left)}; {over}"
        chosen += [
            (left[at], _pruned(left[at], "delete", f"{left[at].uses} uses, {at + 1}. oldest, {why}"))
            for at in sorted(gone)
        ]
        left = [candidate for at, candidate in enumerate(left) if at not in gone]
    return chosen


def unused(
    candidates: Iterable[Candidate], policy: EvictionPolicy, now_us: int, age_us: int
) -> list[tuple[Candidate, Pruned]]:
    """Delete what was neither written nor read within the last ``age_us`` microseconds. Pinned ones stay."""
    chosen = []
    for candidate in in_order(candidates, policy, now_us):
        idle_us = now_us - max(candidate.created_us, candidate.last_us or 0)
        if idle_us > age_us:
            reason = f"unused for {_days(idle_us)}, limit {_days(age_us)}; frequency {candidate.frequency:.3g}"
            chosen.append((candidate, _pruned(candidate, "delete", reason)))
    return chosen


def _why(candidate: Candidate, rank: int, among: int, over: str, by: OrderName) -> str:
    """What made it go, in the words of the order that chose it."""
    if by == "lru":
        value, first = f"last used {_time(max(candidate.created_us, candidate.last_us or 0))}", "longest ago"
    elif by == "fifo":
        value, first = f"written {_time(candidate.created_us)}", "oldest"
    elif by == "memlong":
        value, first = f"{candidate.uses} uses, written {_time(candidate.created_us)}", "first"
    else:
        value, first = f"frequency {candidate.frequency:.3g}", "least"
    place = first if rank == 0 else f"{rank + 1}. {first}"
    return f"{value}, {place} of {among}; {over}"


def _time(us: int) -> str:
    return datetime.fromtimestamp(us / 1_000_000, UTC).isoformat(" ", "seconds").removesuffix("+00:00")


def _pruned(candidate: Candidate, action: str, reason: str) -> Pruned:
    return Pruned.model_validate(
        {
            "id": candidate.id,
            "action": action,
            "reason": reason,
            "frequency": candidate.frequency,
            "kv_bytes": candidate.kv_bytes,
        }
    )


def _days(us: int) -> str:
    return f"{us / 86_400_000_000:.1f} days"
