"""The model's lock is handed on in order."""

from __future__ import annotations

import threading
import time

import pytest

from agentmem.model.lock import FairLock


def test_whoever_waited_longest_is_next_and_a_thread_may_take_it_twice() -> None:
    lock, order, started = FairLock(), [], []

    def take(number: int) -> None:
        with lock, lock:
            order.append(number)

    with lock:
        for number in range(5):
            thread = threading.Thread(target=take, args=(number,))
            thread.start()
            started.append(thread)
            while len(lock._waiting) <= number:
                time.sleep(0.001)
    for thread in started:
        thread.join()
    assert order == [0, 1, 2, 3, 4]


def test_a_thread_that_takes_it_again_and_again_lets_others_in() -> None:
    lock, held, turns = FairLock(), threading.Event(), []

    def greedy() -> None:
        while not held.is_set():
            with lock:
                turns.append(1)
                time.sleep(0.005)

    thread = threading.Thread(target=greedy)
    thread.start()
    while not turns:
        time.sleep(0.001)
    before = len(turns)
    for _ in range(10):
        with lock:
            pass
    assert len(turns) - before <= 30
    held.set()
    thread.join()


def test_it_excludes() -> None:
    lock, inside, most = FairLock(), [], []

    def work() -> None:
        for _ in range(200):
            with lock:
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1}
    with pytest.raises(RuntimeError, match="does not hold it"):
        lock.release()
