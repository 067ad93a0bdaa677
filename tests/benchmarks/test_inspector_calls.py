"""The timing of the inspector's calls at the smallest size: the store, the server and the calls are real."""

from benchmarks.inspector import measure


def test_every_call_is_timed_each_round() -> None:
    took = measure(memories=170, rounds=2)
    assert {"newest first", "a later page", "search", "activity", "preview of pruning all"} <= took.keys()
    assert all(len(times) == 2 and min(times) > 0 for times in took.values())
