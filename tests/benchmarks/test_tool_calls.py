"""The benchmark of calls: what is asked was held out, and what is wrong is counted."""

from __future__ import annotations

import json
from pathlib import Path

import typer
from typer.testing import CliRunner

from agentmem import ToolCall
from agentmem.tools import check_tools
from agentmem.training.values import is_heldout
from benchmarks import report, tool_calls
from benchmarks.tool_calls import KINDS, OTHERS, arguments_of, cases, same


def test_cases_are_held_out_and_the_same_each_time() -> None:
    every = cases(3, seed=5)
    assert every == cases(3, seed=5) != cases(3, seed=6)
    assert {kind: sum(case.kind == kind for case in every) for kind in (*KINDS, "two calls")} == dict.fromkeys(
        (*KINDS, "two calls"), 3
    )
    for case in every:
        names = [tool["function"]["name"] for tool in check_tools(case.tools)]
        assert all(is_heldout(name) for name in names)
        assert {made.name for made in case.calls} <= set(names)
        assert len(case.calls) == len(case.results) == (2 if case.kind == "two calls" else 1)
        for made in case.calls:
            for value in made.arguments.values():
                assert (str(value).lower() if isinstance(value, bool) else str(value)) in case.said


def test_a_call_is_right_in_everything_or_wrong() -> None:
    wanted = ToolCall(name="f", arguments={"a": 1, "b": "x"})
    assert same([ToolCall(name="f", arguments={"b": "x", "a": 1})], wanted)
    for wrong in ({"a": 1}, {"a": 1, "b": "X"}, {"a": "1", "b": "x"}, {"a": 1, "b": "x", "c": None}):
        assert not same([ToolCall(name="f", arguments=wrong)], wanted)
    assert not same([wanted, wanted], wanted)
    assert not same([], wanted)


def test_of_each_argument_it_is_known_whether_it_is_right() -> None:
    wanted = ToolCall(name="f", arguments={"a": 1, "b": "x"})
    assert arguments_of([wanted], wanted) == [True, True]
    assert arguments_of([ToolCall(name="f", arguments={"a": 1, "b": "y", "c": None})], wanted) == [True, False, False]
    assert arguments_of([ToolCall(name="g", arguments=wanted.arguments)], wanted) == [False, False]
    assert arguments_of([wanted, wanted], wanted) == arguments_of([], wanted) == [False, False]
    assert arguments_of([ToolCall(name="f", arguments={})], ToolCall(name="f", arguments={})) == []


def test_the_bundled_model_calls_tools_that_it_never_saw(tmp_path: Path) -> None:
    """The same figures as in RESULTS.md, of fewer cases: floors that lie below their intervals."""
    app, out = typer.Typer(), tmp_path / "tool_calls.json"
    app.command()(tool_calls.main)
    result = CliRunner().invoke(app, ["--cases", "4", "--out", str(out), "--wrong"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found = json.loads(out.read_text())
    rates = found["rates"]
    assert list(rates) == ["all calls", *KINDS, *OTHERS]
    assert rates["all calls"]["n"] == 4 * len(KINDS)
    assert rates["all calls"]["rate"] >= 0.75
    assert rates["answer with the result"]["rate"] >= 0.8
    assert rates["each argument"]["rate"] >= 0.8
    assert "all calls | " in report.tool_calls(found)
