"""A whole run of the benchmark of an agent's steps, with trajectories of its own."""

import json

import pytest
import typer
from typer.testing import CliRunner

from benchmarks import agent_loop, report
from benchmarks.trajectories import FIRST, draw, read


@pytest.fixture(scope="module")
def trajectories(tmp_path_factory):
    path = tmp_path_factory.mktemp("trajectories") / "airline.json"
    said = []
    for n in range(7):
        call = {"id": f"c{n}", "type": "function", "function": {"name": "look", "arguments": json.dumps({"n": n})}}
        said.append({"role": "assistant", "content": None, "tool_calls": [call]})
        said.append(
            {"role": "tool", "tool_call_id": f"c{n}", "content": json.dumps({"status": "open", "seats": 10 * n})}
        )
    path.write_text(json.dumps([{"traj": [{"role": "user", "content": "Hi"}, *said]}]))
    return path


def test_steps_are_the_trajectories_with_fresh_values(trajectories):
    pool = read(trajectories)
    assert len(pool) == 7
    drawn = draw(pool, 40, 30, seed=1)
    assert drawn == draw(pool, 40, 30, seed=1)
    assert len(drawn.steps) == 40
    results = [result["content"] for _, result in drawn.steps]
    assert results[4] != results[11]  # the same one, with other digits
    assert drawn.asked[0].step == FIRST
    for fact in drawn.asked:
        first, _, rest = results[fact.step - 1].partition("\n")
        assert fact.value in first
        assert fact.answer.endswith(f"{fact.value}.")
        assert len(rest) <= 30
    assert all(call["tool_calls"][0]["id"] == result["tool_call_id"] for call, result in drawn.steps)


def test_a_file_without_calls_is_refused(tmp_path):
    (tmp_path / "empty.json").write_text("[]")
    with pytest.raises(ValueError, match="no tool was called"):
        read(tmp_path / "empty.json")


def test_every_contender_is_timed_and_asked(trajectories, tmp_path):
    app, out = typer.Typer(), tmp_path / "loop.json"
    app.command()(agent_loop.main)
    arguments = ("--trajectories", trajectories, "--steps", 10, "--characters", 40, "--group", 3, "--out", out)
    result = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    made = json.loads(out.read_text())
    rows = {row["contender"]: row for row in made["rows"]}
    assert set(rows) == set(agent_loop.Contender)
    for row in rows.values():
        assert row["fits"]
        for taken in (row["step_seconds"], row["step_cpu"]):
            assert taken["n"] == 5
            assert 0 < taken["q1"] <= taken["median"] <= taken["q3"]
        assert row["ratio"] == 1.0
        assert row["first"]["n"] == 1
    whole, new, full, last = (rows[one] for one in agent_loop.Contender)
    assert whole["first"]["hits"] == new["first"]["hits"] == 1
    assert last["first"]["hits"] == 0  # four messages do not hold what step 3 said
    assert full["prompt_tokens"] > whole["prompt_tokens"]
    assert last["memory_tokens"] == full["memory_tokens"] == 0
    assert "airline.json" in made["command"]
    assert str(trajectories.parent) not in out.read_text()
    assert "| agentmem, whole list | 10 |" in report.agent_loop(made)
