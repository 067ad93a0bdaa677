"""Who goes, and why: pure functions over candidates. The store asks them and carries out the answer.

Usage frequency is what MemLong's counters intend: reads, weighted by the attention share they received, so that what
is read often stays; aged by a half-life, so that old fame fades. Pinned memories never go. New ones go last.
Another policy is another function with the signature of ``least_frequent``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta

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


@dataclass(frozen=True)
class EvictionPolicy:
    """Budgets, and how fame fades. A budget of None is no limit; ``space`` budgets hold for each (user, agent)."""

    space_kv_bytes: int | None = 4 * 2**30
    total_kv_bytes: int | None = 16 * 2**30
    space_memories: int | None = 100_000
    total_memories: int | None = 1_000_000
    half_life: timedelta = timedelta(days=30)
    grace: timedelta = timedelta(hours=1)
    """Younger memories go only when nothing older is left to go."""

    def __post_init__(self) -> None:
        for name in ("space_kv_bytes", "total_kv_bytes", "space_memories", "total_memories"):
            budget = getattr(self, name)
            if budget is not None and (isinstance(budget, bool) or not isinstance(budget, int) or budget < 0):
                raise InvalidInput(f"{name} must be a whole number from 0, or None for no limit, not {budget!r}")
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


def low_water(budget: int) -> int:
    """Where an eviction stops: 5 % below the budget, so that a full store does not evict at every write."""
    return budget - budget // 20


def least_frequent(candidates: Iterable[Candidate], policy: EvictionPolicy, now_us: int) -> list[Candidate]:
    """First to go first: by frequency, then oldest. Pinned ones are left out; new ones come last."""

    def order(candidate: Candidate) -> tuple[bool, float, int, int]:
        new = now_us - candidate.created_us < policy.grace_us
        return new, candidate.frequency, candidate.created_us, candidate.key

    return sorted((c for c in candidates if not c.pinned), key=order)


Order = Callable[[Iterable[Candidate], EvictionPolicy, int], list[Candidate]]


def over_kv(
    candidates: list[Candidate], budget: int, target: int, used: int, name: str
) -> list[tuple[Candidate, Pruned]]:
    """When ``used`` bytes are over ``budget``: drop KV, in the order of ``candidates``, down to ``target`` bytes."""
    chosen: list[tuple[Candidate, Pruned]] = []
    if used <= budget:
        return chosen
    over = f"{name} of {budget:,} bytes exceeded by {used - budget:,}"
    for rank, candidate in enumerate(candidates):
        if used <= target:
            break
        if candidate.kv_bytes:
            chosen.append((candidate, _pruned(candidate, "drop_kv", _why(candidate, rank, len(candidates), over))))
            used -= candidate.kv_bytes
    return chosen


def over_count(
    candidates: list[Candidate], budget: int, target: int, used: int, name: str
) -> list[tuple[Candidate, Pruned]]:
    """When ``used`` memories are over ``budget``: delete, in the order of ``candidates``, down to ``target``."""
    if used <= budget:
        return []
    over = f"{name} of {budget:,} exceeded by {used - budget:,}"
    return [
        (candidate, _pruned(candidate, "delete", _why(candidate, rank, len(candidates), over)))
        for rank, candidate in enumerate(candidates[: used - target])
    ]


def unused(
    candidates: Iterable[Candidate], policy: EvictionPolicy, now_us: int, age_us: int
) -> list[tuple[Candidate, Pruned]]:
    """Delete what was neither written nor read within the last ``age_us`` microseconds. Pinned ones stay."""
    chosen = []
    for candidate in least_frequent(candidates, policy, now_us):
        idle_us = now_us - max(candidate.created_us, candidate.last_us or 0)
        if idle_us > age_us:
            reason = f"unused for {_days(idle_us)}, limit {_days(age_us)}; frequency {candidate.frequency:.3g}"
            chosen.append((candidate, _pruned(candidate, "delete", reason)))
    return chosen


def _why(candidate: Candidate, rank: int, among: int, over: str) -> str:
    place = "least" if rank == 0 else f"{rank + 1}. least"
    return f"frequency {candidate.frequency:.3g}, {place} of {among}; {over}"


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
