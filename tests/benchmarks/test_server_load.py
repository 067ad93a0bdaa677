"""The load on a server, with few users and for seconds: every process, answer and signal is real."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from agentmem.records import Scope
from agentmem.store import EmbedderId, Store
from benchmarks import batch_decode, report, server_load
from benchmarks.load_users import ASK, Crowd, Figures, User, secrets


def test_users_are_served_apart_and_nothing_is_lost(tmp_path: Path) -> None:
    app, out = server_load.typer.Typer(), tmp_path / "load.json"
    app.command()(server_load.main)
    options = ["--users", "6", "--minutes", "0.05", "--at-once", "4", "--out", str(out)]
    done = CliRunner().invoke(app, options, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    result = json.loads(out.read_text())
    many, one = result["rows"]
    assert (many["at_once"], one["at_once"]) == (4, 1)
    for row in (many, one):
        assert row["replies"] >= 6
        assert row["kept"] >= 6
        assert 0 < row["reply"]["p50"] <= row["reply"]["p95"]
    assert "exit code 0" in report.server_load(result)


def test_secrets_are_told_apart() -> None:
    names = secrets(64, 0)
    assert len(set(names)) == 64
    assert not [(a, b) for a in names for b in names if a != b and a in b]


def test_a_word_of_another_user_is_noticed() -> None:
    crowd = Crowd("http://127.0.0.1:9", 3, 0, Figures())
    mine, other = crowd.secrets[:2]
    crowd.hear(0, "an answer", [f"Your dog is called {mine}."])
    assert crowd.figures.leaks == []
    crowd.hear(0, "an answer", [f"Your dog is called {other}."])
    assert len(crowd.figures.leaks) == 1


def test_an_error_fails_the_run() -> None:
    class Nobody:
        url = "http://127.0.0.1:9"

    with pytest.raises(server_load.LoadFailed, match="2 errors"):
        server_load.crowd(Nobody(), 2, 0.2, 0)  # type: ignore[arg-type]


def test_a_message_that_is_not_there_fails_the_run(tmp_path: Path) -> None:
    with Store.open(tmp_path / "memory.db", embedder=EmbedderId("none", 4)) as store:
        store.scope(Scope(user="user-0"))
    with pytest.raises(server_load.LoadFailed, match="the store has not"):
        server_load.all_kept(tmp_path / "memory.db", [("user-0", ASK)])


def test_the_right_answer_is_counted() -> None:
    crowd = Crowd("http://127.0.0.1:9", 2, 0, Figures())

    async def asked() -> None:
        user = User(crowd, None, 0, None)  # type: ignore[arg-type]
        user._asked(f"Your dog is called {user.secret}.")
        user._asked("You have not told me.")
        await user.api.close()

    asyncio.run(asked())
    assert (crowd.figures.asked, crowd.figures.right) == (2, 1)


def test_answers_decoded_together_are_measured(tmp_path: Path) -> None:
    app, out = batch_decode.typer.Typer(), tmp_path / "decode.json"
    app.command()(batch_decode.main)
    options = ["--at-once", "1,3", "--tokens", "4", "--repeats", "2", "--out", str(out)]
    done = CliRunner().invoke(app, options, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    result = json.loads(out.read_text())
    assert [row["at_once"] for row in result["rows"]] == [1, 3]
    assert all(0 < row["q1"] <= row["median"] <= row["q3"] for row in result["rows"])
    assert "| 3 |" in report.batch_decode(result)
