"""A disk that is full, and one that fails now and then: every call on the store's files fails once, at some time.

Either the unit of work raises a StoreError and has changed nothing, or it has done all. Afterwards the same process
goes on as if nothing had been.
"""

from __future__ import annotations

import errno
import os
import random
from collections import Counter
from pathlib import Path

import pytest
from disk_tap import tapped
from power_world import POLICY, Held, acts, check, held
from store_world import EMBEDDER

from agentmem.errors import StoreError
from agentmem.store import Store

ROUNDS = int(os.environ.get("AGENTMEM_TEST_FAULTS", "3"))
GROWING = {"write", "name", "folder"}
"""Calls that a full disk refuses."""


class Faults:
    """Lets ``left`` calls of the kinds pass, then fails: once, or (a full disk) until it is disarmed."""

    def __init__(self, kinds: set[str], code: int, lasting: bool):
        self.kinds, self.code, self.lasting = kinds, code, lasting
        self.left: int | None = None
        self.met = self.count = 0

    def arm(self, left: int) -> None:
        self.left, self.met = left, 0

    def disarm(self) -> None:
        self.left = None

    def __call__(self, kind: str) -> int:
        if kind not in self.kinds:
            return 0
        self.count += 1
        if self.left is None:
            return 0
        self.left -= 1
        if self.left >= 0 or (self.met and not self.lasting):
            return 0
        self.met += 1
        return self.code


FAULTS = {
    "disk full": (GROWING, errno.ENOSPC, True),
    "fsync fails": ({"sync"}, errno.EIO, False),
    "write fails": ({"write", "cut"}, errno.EIO, False),
    "names fail": ({"name", "unname", "rename", "folder", "unfolder"}, errno.EIO, False),
}


def plain(folder: Path, kinds: set[str]) -> tuple[list[Held], list[int]]:
    """What is held after each act when nothing fails, and how many calls each makes."""
    (folder / "store").mkdir(parents=True)
    counter = Faults(kinds, 0, False)
    with (
        tapped(folder / "store", counter),
        Store.open(folder / "store" / "memory.db", embedder=EMBEDDER, eviction=POLICY) as store,
    ):
        after, calls = [held(store)], [counter.count]
        for act in acts(store, folder):
            before = counter.count
            act.do()
            calls.append(counter.count - before)
            after.append(held(store))
    return after, calls


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failing_disk_changes_nothing_or_all(fault: str, tmp_path: Path) -> None:
    kinds, code, lasting = FAULTS[fault]
    after, calls = plain(tmp_path / "plain", kinds)
    outcomes: Counter[str] = Counter()
    for number in range(ROUNDS):
        dice = random.Random(number)
        folder = tmp_path / str(number)
        (folder / "store").mkdir(parents=True)
        path = folder / "store" / "memory.db"
        faults = Faults(kinds, code, lasting)
        with tapped(folder / "store", faults):
            faults.arm(dice.randrange(calls[0]))
            try:
                store = Store.open(path, embedder=EMBEDDER, eviction=POLICY)
            except StoreError:
                outcomes["open"] += 1
                faults.disarm()
                store = Store.open(path, embedder=EMBEDDER, eviction=POLICY)
            faults.disarm()
            gone: list[bytes] = []
            for act, before, then, count in zip(acts(store, folder), after[:-1], after[1:], calls[1:], strict=True):
                faults.arm(dice.randrange(max(1, count)))
                try:
                    act.do()
                except StoreError:
                    outcomes["raised"] += 1
                    faults.disarm()
                    assert held(store) == before, f"{act.name} raised, and has changed something"
                    act.do()
                outcomes["met"] += faults.met > 0
                faults.disarm()
                assert held(store) == then, act.name
                gone += act.gone
            store.close()
        check(path, {after[-1]}, gone)
    assert outcomes["met"] >= 5 * ROUNDS, outcomes
    assert outcomes["raised"] >= 2 * ROUNDS or fault == "names fail", outcomes
