"""Traces, replays, and the optimum that no policy may beat."""

import functools
import itertools
import json
import lzma

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentmem.store import EvictionPolicy
from benchmarks import eviction, report
from benchmarks.eviction import KV_BYTES, POLICIES, belady, replay
from benchmarks.traces import Trace, Turn, longmemeval, zipf


def trace(reads):
    """One memory per turn; each is written in the turn before its first read."""
    turns, known = [], set()
    for at, memory in enumerate(reads):
        if memory not in known:
            known.add(memory)
            turns.append(Turn(2 * at, (), (memory,)))
        turns.append(Turn(2 * at + 1, (memory,), ()))
    return Trace("small", tuple(turns))


def best_of_all(some, room):
    """Hits of the best sequence of evictions, by trying all: after each touch, every choice of what stays."""
    touched = [
        (memory, read)
        for turn in some.turns
        for read, memories in ((True, turn.reads), (False, turn.writes))
        for memory in memories
    ]

    @functools.cache
    def hits(at, warm):
        if at == len(touched):
            return 0
        memory, read = touched[at]
        everything = warm | {memory}
        choices = map(frozenset, itertools.combinations(everything, min(room, len(everything))))
        return (read and memory in warm) + max(hits(at + 1, choice) for choice in choices)

    return hits(0, frozenset())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=9), st.integers(1, 3))
def test_belady_is_the_optimum(reads, room):
    some = trace(reads)
    assert belady(some, room * KV_BYTES) * len(reads) == pytest.approx(best_of_all(some, room))


@pytest.mark.parametrize("order", POLICIES)
def test_no_policy_beats_the_optimum_and_all_hit_everything_with_room_for_all(order):
    some = zipf(400, 0.05, seed=1, memories=100)
    policy = EvictionPolicy(order=order)
    best = belady(some, 20 * KV_BYTES)
    assert 0.0 < replay(some, policy, 20 * KV_BYTES) <= best < 1.0
    assert replay(some, policy, some.memories * KV_BYTES) == belady(some, some.memories * KV_BYTES) == 1.0
    assert replay(some, policy, 20 * KV_BYTES) == replay(some, policy, 20 * KV_BYTES)


def test_drift_favours_the_recent_and_no_drift_the_frequent():
    rates = {}
    for drift in (0.0, 0.5):
        some = zipf(1500, drift, seed=2, memories=300)
        for order in ("lfu", "fifo"):
            rates[drift, order] = replay(some, EvictionPolicy(order=order), 60 * KV_BYTES)
    assert rates[0.0, "lfu"] > rates[0.0, "fifo"]
    assert rates[0.0, "lfu"] > rates[0.5, "lfu"]


def dialogue(*said):
    return [{"role": role, "content": text} for role, text in zip(itertools.cycle(("user", "assistant")), said)]


def test_a_trace_of_dialogues_reads_what_a_search_finds(tmp_path):
    sessions = {
        "a": dialogue("My zebra is called Quagga.", "Noted."),
        "b": dialogue("I like tea.", "So do I.", "The zebra ate my hat.", "Oh."),
    }
    question = {"haystack_dates": ["2023/05/21 (Sun) 10:00", "2023/05/20 (Sat) 01:44"], "session_keys": ["b", "a"]}
    question |= {"question": "What is the zebra called?", "question_date": "2023/05/22 (Mon) 09:00"}
    path = tmp_path / "data.json.xz"
    with lzma.open(path, "wt") as file:
        json.dump({"sessions": sessions, "questions": [question]}, file)
    some = longmemeval(path, 1)
    assert some.memories == 6
    by_write = {turn.writes[0]: turn.reads for turn in some.turns if turn.writes}
    assert by_write[0] == ()
    assert by_write[4][:1] == (0,), "the turn about the zebra reads what was said in the session before"
    assert 0 in some.turns[-1].reads
    assert [turn.at_us for turn in some.turns] == sorted(turn.at_us for turn in some.turns)


def test_the_report_has_every_policy(tmp_path, capsys):
    out, results = tmp_path / "eviction.json", tmp_path / "RESULTS.md"
    eviction.main(data=None, users=1, turns=150, budgets="0.1,0.5", half_life_days=30.0, seed=0, out=out)
    results.write_text("<!-- begin eviction -->\n<!-- end eviction -->\n")
    report.main([out], results, None)
    text = results.read_text()
    assert all(policy in text for policy in (*POLICIES, "Belady"))
    assert text.count("| Zipf") == 6
    assert "Belady" in capsys.readouterr().out
