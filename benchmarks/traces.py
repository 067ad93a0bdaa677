"""Recorded traces: which memories were written and read in each turn. What an eviction policy is replayed on."""

from __future__ import annotations

import json
import lzma
import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate
from pathlib import Path
from typing import Any

from agentmem.records import Role, Scope
from agentmem.store import NewMemory, Store

MINUTE = 60_000_000
CHUNK = 500
"""Characters of a turn that make its memory, about a chunk."""
TOP_K = 8


@dataclass(frozen=True)
class Turn:
    """One turn: when (UTC microseconds), the memories that were read, and then those that were written."""

    at_us: int
    reads: tuple[int, ...]
    writes: tuple[int, ...]


@dataclass(frozen=True)
class Trace:
    """Turns in order. Memories are numbered from 0; each is written once, before it is read."""

    name: str
    turns: tuple[Turn, ...]

    @property
    def memories(self) -> int:
        """How many were written."""
        return sum(len(turn.writes) for turn in self.turns)


def zipf(turns: int, drift: float, seed: int, *, memories: int = 2000, reads: int = 4, exponent: float = 1.0) -> Trace:
    """Reads with Zipf's popularity, one turn every ten minutes.

    ``drift`` is the share of all memories by which the ranking moves on each day: what was read most becomes what is
    read least. A memory is written in the turn before its first read.
    """
    rng = random.Random(f"zipf {seed}")
    weights = list(accumulate(1.0 / rank**exponent for rank in range(1, memories + 1)))
    names = rng.sample(range(memories), memories)
    numbers: dict[int, int] = {}
    made = []
    for turn in range(turns):
        at_us = turn * 10 * MINUTE
        shift = int(drift * memories * at_us / (24 * 60 * MINUTE))
        ranks = dict.fromkeys(rng.choices(range(memories), cum_weights=weights, k=reads))
        asked = [names[(rank + shift) % memories] for rank in ranks]
        fresh = [name for name in asked if name not in numbers]
        for name in fresh:
            numbers[name] = len(numbers)
        if fresh:
            made.append(Turn(at_us, (), tuple(numbers[name] for name in fresh)))
        made.append(Turn(at_us + MINUTE, tuple(numbers[name] for name in asked), ()))
    return Trace(f"Zipf, drift {drift:.0%} a day", tuple(made))


def longmemeval(path: Path, users: int) -> Trace:
    """The dialogues of LongMemEval-S, played by several users at once into one store.

    Each turn becomes a memory. Before it is written, the store is searched for what a user says, lexically, among the
    user's memories of other sessions: the eight that are found are read. Sessions are played in the order of their
    dates, then each user asks the question.
    """
    with lzma.open(path) as file:
        data = json.load(file)
    sessions = [
        (_date(date), user, key)
        for user, question in enumerate(data["questions"][:users])
        for date, key in zip(question["haystack_dates"], question["session_keys"], strict=True)
    ]
    made: list[Turn] = []
    numbers: dict[str, int] = {}
    with Store.open(":memory:") as store:
        for at_us, user, key in sorted(sessions):
            made += _play(store, user, f"{user}-{key}", data["sessions"][key], at_us, numbers)
        for user, question in enumerate(data["questions"][:users]):
            at_us = _date(question["question_date"])
            made.append(Turn(at_us, _found(store, user, question["question"], numbers), ()))
    return Trace(f"LongMemEval-S, {users} users", tuple(sorted(made, key=lambda turn: turn.at_us)))


def _play(
    store: Store, user: int, session: str, turns: list[dict[str, Any]], at_us: int, numbers: dict[str, int]
) -> Iterator[Turn]:
    handle = store.scope(Scope(user=f"user-{user}"))
    new = []
    for at, turn in enumerate(turns):
        text = turn["content"].strip()[:CHUNK]
        if not text:
            continue
        # The session itself is in the window: it is stored, and so found, only afterwards.
        reads = _found(store, user, text, numbers) if turn["role"] == "user" else ()
        id_ = f"{session}-{at}"
        numbers[id_] = len(numbers)
        role = Role.USER if turn["role"] == "user" else Role.ASSISTANT
        new.append(NewMemory(text=text, role=role, turn=id_, id=id_, session=session, n_tokens=len(text) // 4))
        yield Turn(at_us + at * MINUTE, reads, (numbers[id_],))
    handle.add(new)


def _found(store: Store, user: int, text: str, numbers: dict[str, int]) -> tuple[int, ...]:
    hits = store.scope(Scope(user=f"user-{user}")).search(text, top_k=TOP_K)
    return tuple(numbers[hit.memory.id] for hit in hits)


def _date(said: str) -> int:
    """Microseconds of such as ``2023/05/20 (Sat) 01:44``."""
    day, _, time = said.split(" ")
    moment = datetime.strptime(f"{day} {time} +0000", "%Y/%m/%d %H:%M %z")
    return int(moment.timestamp()) * 1_000_000
