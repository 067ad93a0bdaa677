"""Eviction policies against Belady's optimum: ``python -m benchmarks.eviction``.

Traces of turns are replayed through the very functions by which the store evicts (``agentmem.store.eviction``), under
a budget of bytes of KV. A read is a hit when the memory's KV is still there; after a miss it is there again, as in a
store, where it is encoded anew from text. All KV is of one size, so that Belady's rule (what is read again last, or
never, goes first; L. A. Belady, IBM Systems Journal 5, 1966) is the best that anyone could do who knew the future.
"""

from __future__ import annotations

import heapq
import json
import math
import time
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from rich.console import Console
from rich.table import Table

from agentmem.evaluation.machine import describe
from agentmem.store import EvictionPolicy
from agentmem.store.eviction import Candidate, OrderName, credited, decayed, in_order, kv_target, over_kv
from benchmarks.machine import console
from benchmarks.traces import Trace, longmemeval, zipf

KV_BYTES = 1000
"""Of each memory; only its ratio to the budget matters."""
POLICIES: tuple[OrderName, ...] = get_args(OrderName)
OPTIMUM = "Belady"
FILE = "longmemeval/longmemeval_s_120.json.xz"

Rows = list[dict[str, Any]]


class Cache:
    """Which memories have KV, under a policy: counters and evictions as in the store."""

    def __init__(self, policy: EvictionPolicy, budget: int):
        self._policy, self._budget = policy, budget
        self._known: dict[int, dict[str, Any]] = {}
        self._warm: set[int] = set()

    def read(self, memory: int, at_us: int, share: float) -> bool:
        """Whether its KV was there. It is now."""
        hit = memory in self._warm
        self._warm.add(memory)
        known = self._known[memory]
        known["score"] = credited(known["score"], known["score_us"], at_us, self._policy.half_life_us, share)
        known |= {"score_us": at_us, "last_us": at_us, "uses": known["uses"] + 1}
        return hit

    def write(self, memory: int, at_us: int) -> None:
        """A new memory, with KV."""
        self._known[memory] = {"score": 0.0, "score_us": at_us, "last_us": None, "uses": 0, "created_us": at_us}
        self._warm.add(memory)

    def evict(self, now_us: int) -> None:
        """Drop KV when there is too much."""
        used = KV_BYTES * len(self._warm)
        if used <= self._budget:
            return
        order = in_order([self._candidate(memory, now_us) for memory in self._warm], self._policy, now_us)
        gone = over_kv(
            order, self._budget, kv_target(self._budget, self._policy), used, "KV budget", self._policy.order
        )
        self._warm -= {candidate.key for candidate, _ in gone}

    def _candidate(self, memory: int, now_us: int) -> Candidate:
        known = self._known[memory]
        return Candidate(
            key=memory,
            id=str(memory),
            frequency=decayed(known["score"], known["score_us"], now_us, self._policy.half_life_us),
            created_us=known["created_us"],
            last_us=known["last_us"],
            kv_bytes=KV_BYTES,
            pinned=False,
            uses=known["uses"],
        )


def replay(trace: Trace, policy: EvictionPolicy, budget: int) -> float:
    """Hit rate of a policy."""
    cache, hits, reads = Cache(policy, budget), 0, 0
    for turn in trace.turns:
        for memory in turn.reads:
            hits += cache.read(memory, turn.at_us, 1 / len(turn.reads))
        reads += len(turn.reads)
        for memory in turn.writes:
            cache.write(memory, turn.at_us)
        cache.evict(turn.at_us)
    return hits / max(1, reads)


def belady(trace: Trace, budget: int) -> float:
    """The best hit rate that there is, for one who knows what will be read. Eviction is exact, one at a time."""
    touched = [
        (memory, read)
        for turn in trace.turns
        for read, some in ((True, turn.reads), (False, turn.writes))
        for memory in some
    ]
    later: list[float] = [math.inf] * len(touched)
    seen: dict[int, int] = {}
    for at in range(len(touched) - 1, -1, -1):
        later[at] = seen.get(touched[at][0], math.inf)
        seen[touched[at][0]] = at
    room, hits, reads = budget // KV_BYTES, 0, 0
    warm: dict[int, float] = {}
    farthest: list[tuple[float, int]] = []
    for at, (memory, read) in enumerate(touched):
        reads += read
        hits += read and memory in warm
        warm[memory] = later[at]
        heapq.heappush(farthest, (-later[at], memory))
        while len(warm) > room:
            when, last = heapq.heappop(farthest)
            if warm.get(last) == -when:  # else it has been read since
                del warm[last]
    return hits / max(1, reads)


def measure(traces: list[Trace], shares: list[float], half_life: timedelta, screen: Console) -> Rows:
    """One row for each trace, budget and policy."""
    rows: Rows = []
    for trace in traces:
        for share in shares:
            budget = int(share * trace.memories) * KV_BYTES
            best = belady(trace, budget)
            of = {"trace": trace.name, "memories": trace.memories, "budget": share}
            of["reads"] = sum(len(turn.reads) for turn in trace.turns)
            for order in POLICIES:
                policy = EvictionPolicy(order=order, half_life=half_life)
                began = time.perf_counter()
                rate = replay(trace, policy, budget)
                rows.append({**of, "policy": order, "hit_rate": rate, "of_optimum": rate / best if best else 1.0})
                if screen.is_terminal:
                    screen.print(f"{trace.name}, {share:.0%}, {order}: {time.perf_counter() - began:.1f} s")
            rows.append({**of, "policy": OPTIMUM, "hit_rate": best, "of_optimum": 1.0})
    return rows


HEAD = ["trace", "memories", "reads", "budget", *POLICIES, OPTIMUM]


def table_rows(rows: Rows) -> list[list[str]]:
    """One line for each trace and budget; each policy's hit rate, and what part of the optimum it is."""
    lines: dict[tuple[str, float], list[str]] = {}
    for row in rows:
        head = [row["trace"], f"{row['memories']:,}", f"{row['reads']:,}", f"{row['budget']:.0%}"]
        line = lines.setdefault((row["trace"], row["budget"]), head)
        part = "" if row["policy"] == OPTIMUM else f" ({row['of_optimum']:.2f})"
        line.append(f"{row['hit_rate']:.3f}{part}")
    return list(lines.values())


def show(result: dict[str, Any], screen: Console) -> None:
    """Print the report as a table."""
    table = Table(*HEAD, title="hit rate (part of the optimum)")
    for line in table_rows(result["rows"]):
        table.add_row(*line)
    screen.print(table)


def main(
    data: Annotated[
        Path | None, typer.Option(envvar="AGENTMEM_DATA", help=f"Folder that has {FILE}; without it, Zipf only.")
    ] = None,
    users: Annotated[int, typer.Option(min=1, max=120, help="Users of the LongMemEval trace.")] = 12,
    turns: Annotated[int, typer.Option(min=1, help="Turns of each Zipf trace.")] = 6000,
    budgets: Annotated[str, typer.Option(help="Budgets, as shares of the KV of all memories.")] = "0.05,0.2,0.5",
    half_life_days: Annotated[float, typer.Option(min=0.01, help="Half-life of usage frequency.")] = 30.0,
    seed: Annotated[int, typer.Option(help="Seed of the Zipf traces.")] = 0,
    out: Annotated[Path, typer.Option(help="JSON report to write.")] = Path("eviction.json"),
) -> None:
    """Compare eviction policies on recorded traces."""
    screen = console()
    traces = [zipf(turns, drift, seed) for drift in (0.0, 0.02, 0.2)]
    if data is not None:
        traces.append(longmemeval(data / FILE, users))
    shares = [float(share) for share in budgets.split(",")]
    rows = measure(traces, shares, timedelta(days=half_life_days), screen)
    options = f"--users {users} --turns {turns} --budgets {budgets} --half-life-days {half_life_days:g} --seed {seed}"
    result = {
        "benchmark": "eviction",
        "command": f"python -m benchmarks.eviction {'' if data is None else '--data ../shared/data '}{options}",
        "machine": describe(1),
        "model": "none",
        "rows": rows,
    }
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    show(result, screen)


if __name__ == "__main__":
    typer.run(main)
