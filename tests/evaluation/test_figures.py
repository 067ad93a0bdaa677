import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmem.evaluation.figures import rate, spread, wilson

counts = st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [(10, 20, 0.2993, 0.7007), (0, 10, 0.0, 0.2775), (285, 300, 0.9192, 0.9695), (10, 10, 0.7225, 1.0)],
)
def test_wilson_gives_the_published_interval(hits, n, low, high):
    assert wilson(hits, n) == pytest.approx((low, high), abs=5e-4)


@given(counts)
def test_wilson_bounds_solve_its_equation(count):
    hits, n = count
    z = 1.959964
    for bound in wilson(hits, n):
        if 0 < bound < 1:
            assert (hits / n - bound) ** 2 == pytest.approx(z * z * bound * (1 - bound) / n, abs=1e-9)


@given(counts)
def test_wilson_holds_the_rate_and_mirrors(count):
    hits, n = count
    low, high = wilson(hits, n)
    assert 0 <= low <= hits / n <= high <= 1
    assert wilson(n - hits, n) == pytest.approx((1 - high, 1 - low))


def test_wilson_without_trials_says_nothing():
    assert wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="5 of 4"):
        wilson(5, 4)


def test_rate_counts():
    assert rate([True, False, True, True]) == pytest.approx(
        {"hits": 3, "n": 4, "rate": 0.75, "low": wilson(3, 4)[0], "high": wilson(3, 4)[1]}
    )


def test_spread_gives_quartiles():
    assert spread([5.0, 1.0, 3.0, 2.0, 4.0]) == {"n": 5, "median": 3.0, "q1": 2.0, "q3": 4.0}
    assert spread([7.0]) == {"n": 1, "median": 7.0, "q1": 7.0, "q3": 7.0}
    with pytest.raises(ValueError, match="no values"):
        spread([])


@given(st.lists(st.floats(0, 1e6), min_size=1))
def test_spread_is_ordered(values):
    found = spread(values)
    assert min(values) <= found["q1"] <= found["median"] <= found["q3"] <= max(values) or math.isclose(
        found["q1"], found["q3"]
    )
